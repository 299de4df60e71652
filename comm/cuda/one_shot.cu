// A sum of a few kilobytes is all latency: every rank writes its x into all others' memory at once
// and adds up what came. Data travels as NCCL's LL protocol has it: each 8-byte store, which
// arrives whole, carries 4 bytes and the number of the sum, so that the receiver needs neither a
// barrier nor a fence; it polls its own memory until the number is there.
//
// The number (epoch) counts the sums that a block took part in. It lies in device memory, so that a
// graph's replays go on counting. Two sums in a row use different halves of the inbox; a half is
// written again only after its reader has sent the sum in between, so it has been read: every block
// receives from, and sends to, the same block of every rank, and its units are always its own.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <bit>

#include "comm/cuda/one_shot.h"
#include "engine/core/cuda/cuda_device.h"

namespace millrace::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kMaxUnits = 8;  // of 8 bytes, per thread
static_assert(int64_t{8} * kMaxUnits * kOneShotBlocks * kThreads >= one_shot_limit(2));

__device__ __forceinline__ void send_packet(uint4* to, uint2 data, uint32_t epoch) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(data.x),
               "r"(epoch), "r"(data.y), "r"(epoch)
               : "memory");
}

__device__ __forceinline__ uint2 receive_packet(
    const uint4* from, uint32_t epoch, const volatile uint32_t* abort) {
  uint32_t x, y, first, second;
  for (uint32_t spins = 1;; ++spins) {
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x), "=r"(first), "=r"(y), "=r"(second)
                 : "l"(from)
                 : "memory");
    if (first == epoch && second == epoch) break;
    if (spins % 4096 == 0 && *abort != 0) break;
  }
  return {x, y};
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    one_shot_kernel(const __grid_constant__ OneShotGroup group, uint2* x, int units, int capacity) {
  constexpr int kElements = 8 / sizeof(T);
  struct alignas(8) Unit {
    T data[kElements];
  };
  const uint32_t epoch = group.epochs[blockIdx.x] + 1;
  __syncthreads();
  if (threadIdx.x == 0) group.epochs[blockIdx.x] = epoch;
  const auto packet = [&](int receiver, int sender, int unit) {
    const int64_t half = epoch % 2 * group.size;
    return static_cast<uint4*>(group.inboxes[receiver]) + (half + sender) * capacity + unit;
  };
  const int first_unit = blockIdx.x * kThreads + threadIdx.x;
  constexpr int kStride = kOneShotBlocks * kThreads;  // whatever the grid: see above
  uint2 mine[kMaxUnits] = {};
#pragma unroll
  for (int j = 0; j < kMaxUnits; ++j) {
    const int unit = first_unit + j * kStride;
    if (unit >= units) break;
    mine[j] = x[unit];
    for (int i = 1; i < group.size; ++i) {
      const int peer = (group.rank + i) % group.size;
      send_packet(packet(peer, group.rank, unit), mine[j], epoch);
    }
  }
#pragma unroll
  for (int j = 0; j < kMaxUnits; ++j) {
    const int unit = first_unit + j * kStride;
    if (unit >= units) break;
    float sum[kElements] = {};
    for (int sender = 0; sender < group.size; ++sender) {
      const uint2 bits = sender == group.rank
                             ? mine[j]
                             : receive_packet(packet(group.rank, sender, unit), epoch, group.abort);
      const Unit part = __builtin_bit_cast(Unit, bits);
#pragma unroll
      for (int e = 0; e < kElements; ++e) sum[e] += static_cast<float>(part.data[e]);
    }
    Unit total;
#pragma unroll
    for (int e = 0; e < kElements; ++e) total.data[e] = static_cast<T>(sum[e]);
    x[unit] = __builtin_bit_cast(uint2, total);
  }
}

struct Columns {
  int size;
  int64_t begins[kMaxGatherRanks + 1];  // in V; begins[size]: all
};

template <typename V>
__global__ void interleave_kernel(
    const V* gathered, V* out, int64_t rows, const __grid_constant__ Columns columns) {
  const int64_t width = columns.begins[columns.size];
  const int64_t c = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (c >= width) return;
  int rank = 0;
  while (c >= columns.begins[rank + 1]) ++rank;
  const int64_t begin = columns.begins[rank], cols = columns.begins[rank + 1] - begin;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    out[row * width + c] = gathered[rows * begin + row * cols + c - begin];
  }
}

}  // namespace

void one_shot_all_reduce(const OneShotGroup& group, const TensorView& x, cudaStream_t stream) {
  const int64_t bytes = dtype_bytes(x.dtype, x.count());
  CHECK(bytes % 8 == 0 && bytes <= one_shot_limit(group.size) && x.contiguous());
  const auto units = static_cast<int>(bytes / 8);
  const auto capacity = static_cast<int>(one_shot_limit(group.size) / 8);
  const int blocks = std::clamp((units + kThreads - 1) / kThreads, 1, kOneShotBlocks);
  const auto launch = [&](auto kernel) {
    kernel<<<blocks, kThreads, 0, stream>>>(group, x.as<uint2>(), units, capacity);
  };
  if (x.dtype == DType::kF32) {
    launch(one_shot_kernel<float>);
  } else if (x.dtype == DType::kF16) {
    launch(one_shot_kernel<__half>);
  } else {
    CHECK(x.dtype == DType::kBF16);
    launch(one_shot_kernel<__nv_bfloat16>);
  }
  check_cuda(cudaGetLastError(), "one_shot_all_reduce");
}

void interleave_cols(const void* gathered, std::span<const int64_t> cols, const TensorView& out,
    cudaStream_t stream) {
  CHECK(cols.size() <= kMaxGatherRanks && out.contiguous() && out.dtype == DType::kF32);
  if (out.count() == 0) return;
  const bool packed =
      reinterpret_cast<uintptr_t>(out.data) % 16 == 0 &&
      std::all_of(cols.begin(), cols.end(), [](int64_t width) { return width % 4 == 0; });
  Columns columns{static_cast<int>(cols.size()), {}};
  for (size_t r = 0; r < cols.size(); ++r) {
    columns.begins[r + 1] = columns.begins[r] + cols[r] / (packed ? 4 : 1);
  }
  const int64_t width = columns.begins[cols.size()];
  const dim3 grid(static_cast<unsigned>((width + kThreads - 1) / kThreads),
      static_cast<unsigned>(std::min<int64_t>(out.rows(), 65535)));
  const auto launch = [&]<typename V>(V* to) {
    interleave_kernel<V>
        <<<grid, kThreads, 0, stream>>>(static_cast<const V*>(gathered), to, out.rows(), columns);
  };
  packed ? launch(out.as<float4>()) : launch(out.as<float>());
  check_cuda(cudaGetLastError(), "interleave_cols");
}

}  // namespace millrace::cuda
