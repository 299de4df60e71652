// A sum of a few kilobytes is all latency: every rank writes its x into all others' memory at once
// and adds up what came. Data travels as NCCL's LL protocol has it: each 8-byte store, which
// arrives whole, carries 4 bytes and the number of the sum, so that the receiver needs neither a
// barrier nor a fence; it polls its own memory until the number is there.
//
// An inbox is [2 halves][senders][kOneShotBlocks][kBlockUnits]: block b of a rank sends to, and
// receives from, block b of every other rank and touches slice b of any inbox only, whatever the
// sum's shape and whether a norm follows it. epochs[b] numbers the sums that block b took part in,
// the same number on every rank, for all give a sum the same grid; it lies in device memory, so
// that a graph's replays go on counting. Sum e of a block uses half e % 2. Sum e + 2 may write over
// it: a rank gets there only after its block b has received something from block b of every other
// rank in sum e + 1 (a block of the grid always has a unit), which they sent after their sum e had
// ended, for the kernels of a rank run one after another; so they had read the half.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <bit>

#include "comm/cuda/one_shot.h"
#include "engine/core/cuda/launch.cuh"

namespace millrace::cuda {

namespace {

constexpr int kThreads = 512;                   // two blocks fit on an SM
constexpr int kUnits = kBlockUnits / kThreads;  // of a row, per thread

template <typename T>
inline constexpr int kElements = 8 / sizeof(T);  // in a unit of 8 bytes

// Rows of x, in units; block b has rows b, b + gridDim.x ... Of a plain sum a row is what a block
// takes, and `units`, all of x, may end within the last. residual, out and weight: where a norm
// follows.
struct OneShotSum {
  uint2* x;
  int rows, row_units, units;
  uint2* residual;
  uint2* out;
  const float* weight;
  float eps;
};

__device__ __forceinline__ void send_packet(uint4* to, uint2 data, uint32_t epoch) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(data.x),
               "r"(epoch), "r"(data.y), "r"(epoch)
               : "memory");
}

// Packets j * kThreads of `from` for j < count, all asked for at once.
__device__ __forceinline__ void receive_packets(const uint4* from, int count, uint32_t epoch,
    const volatile uint32_t* abort, uint2 (&data)[kUnits]) {
  for (uint32_t spins = 1;; ++spins) {
    bool complete = true;
#pragma unroll
    for (int j = 0; j < kUnits; ++j) {
      if (j >= count) break;
      uint32_t first, second;
      asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(data[j].x), "=r"(first), "=r"(data[j].y), "=r"(second)
                   : "l"(from + j * kThreads)
                   : "memory");
      complete &= first == epoch && second == epoch;
    }
    if (complete || (spins % 4096 == 0 && *abort != 0)) return;
  }
}

template <typename T>
__device__ __forceinline__ void unpack(uint2 bits, float (&to)[kElements<T>]) {
  struct alignas(8) Unit {
    T data[kElements<T>];
  };
  const Unit unit = __builtin_bit_cast(Unit, bits);
#pragma unroll
  for (int e = 0; e < kElements<T>; ++e) to[e] = static_cast<float>(unit.data[e]);
}
template <typename T>
__device__ __forceinline__ uint2 pack(const float (&from)[kElements<T>]) {
  struct alignas(8) Unit {
    T data[kElements<T>];
  } unit;
#pragma unroll
  for (int e = 0; e < kElements<T>; ++e) unit.data[e] = static_cast<T>(from[e]);
  return __builtin_bit_cast(uint2, unit);
}

// Of all threads of a block of whole warps, given to each.
__device__ float block_sum(float value) {
  __shared__ float partial[32];
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  __syncthreads();  // a former row's partial sums have been read
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  value = 0;
  for (unsigned i = 0; i < blockDim.x / 32; ++i) value += partial[i];
  return value;
}

// residual += v, then out = its norm: one row, of which this thread has `count` units from `unit`
// on and their columns from `column` on. Every thread of the block calls.
template <typename T>
__device__ __forceinline__ void add_norm(const OneShotSum& sum, int count, int64_t unit, int column,
    const uint2 (&residual)[kUnits], float (&v)[kUnits][kElements<T>]) {
  float squares = 0;
#pragma unroll
  for (int j = 0; j < kUnits; ++j) {
    if (j >= count) break;
    float old[kElements<T>];
    unpack<T>(residual[j], old);
#pragma unroll
    for (int e = 0; e < kElements<T>; ++e) v[j][e] += old[e];
    const uint2 stored = pack<T>(v[j]);
    sum.residual[unit + j * kThreads] = stored;
    unpack<T>(stored, v[j]);  // the norm is of what is stored
#pragma unroll
    for (int e = 0; e < kElements<T>; ++e) squares += v[j][e] * v[j][e];
  }
  struct alignas(sizeof(float) * kElements<T>) Weights {
    float data[kElements<T>];
  } weights[kUnits];
#pragma unroll
  for (int j = 0; j < kUnits; ++j) {
    const int at = column + j * kThreads;
    if (j < count) weights[j] = reinterpret_cast<const Weights*>(sum.weight)[at];
  }
  const auto cols = static_cast<float>(sum.row_units * kElements<T>);
  const float factor = 1.0f / sqrtf(block_sum(squares) / cols + sum.eps);
#pragma unroll
  for (int j = 0; j < kUnits; ++j) {
    if (j >= count) break;
#pragma unroll
    for (int e = 0; e < kElements<T>; ++e) v[j][e] = v[j][e] * factor * weights[j].data[e];
    sum.out[unit + j * kThreads] = pack<T>(v[j]);
  }
}

// This thread's share of its block's rows.
struct Share {
  // Where the block's packets from `sender` lie in a rank's inbox.
  __device__ uint4* slice(int receiver, int sender) const {
    const int64_t part = epoch % 2 * group.size + sender;
    return static_cast<uint4*>(group.inboxes[receiver]) +
           (part * kOneShotBlocks + blockIdx.x) * kBlockUnits;
  }
  // Units of a row: `column`, column + kThreads ...; a smaller block has one row's in one turn.
  __device__ int count_in(int row) const {
    const int end = min(sum.row_units, sum.units - row * sum.row_units);
    return column < end ? (end - column + kThreads - 1) / kThreads : 0;
  }
  __device__ void load(const uint2* from, int row, int count, uint2 (&to)[kUnits]) const {
    from += int64_t{row} * sum.row_units + column;
#pragma unroll
    for (int j = 0; j < kUnits; ++j) {
      if (j < count) to[j] = from[j * kThreads];
    }
  }
  // `at`: the row's place in the slice.
  __device__ void send(int row, int at) const {
    const int count = count_in(row);
    uint2 mine[kUnits];
    load(sum.x, row, count, mine);
    for (int i = 1; i < group.size; ++i) {
      uint4* to = slice((group.rank + i) % group.size, group.rank) + at + column;
#pragma unroll
      for (int j = 0; j < kUnits; ++j) {
        if (j < count) send_packet(to + j * kThreads, mine[j], epoch);
      }
    }
  }
  template <typename T>
  __device__ void receive(int row, int at, int count, float (&v)[kUnits][kElements<T>]) const {
    uint2 mine[kUnits];
    load(sum.x, row, count, mine);
    for (int sender = 0; sender < group.size; ++sender) {
      uint2 part[kUnits];
      if (sender != group.rank) {
        receive_packets(slice(group.rank, sender) + at + column, count, epoch, group.abort, part);
      }
#pragma unroll
      for (int j = 0; j < kUnits; ++j) {
        if (j >= count) break;
        float add[kElements<T>];
        unpack<T>(sender == group.rank ? mine[j] : part[j], add);
#pragma unroll
        for (int e = 0; e < kElements<T>; ++e) v[j][e] = sender == 0 ? add[e] : v[j][e] + add[e];
      }
    }
  }

  const OneShotGroup& group;
  const OneShotSum& sum;
  uint32_t epoch;
  int column;
};

template <typename T, bool kNorm>
__global__ void __launch_bounds__(kThreads, 2) one_shot_kernel(
    const __grid_constant__ OneShotGroup group, const __grid_constant__ OneShotSum sum) {
  if (group.alone) admit_next();
  const int column = static_cast<int>(threadIdx.x);
  for (int c = column; kNorm && c < sum.row_units; c += kThreads) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(sum.weight + c * kElements<T>));
  }
  wait_for_inputs();
  const Share share{group, sum, group.epochs[blockIdx.x] + 1, column};
  const int first = static_cast<int>(blockIdx.x), grid = static_cast<int>(gridDim.x);
  for (int row = first, at = 0; row < sum.rows; row += grid, at += sum.row_units) {
    share.send(row, at);
  }
  __syncthreads();  // all have read the epoch
  if (column == 0) group.epochs[blockIdx.x] = share.epoch;
  for (int row = first, at = 0; row < sum.rows; row += grid, at += sum.row_units) {
    const int count = share.count_in(row);
    uint2 residual[kUnits];
    if constexpr (kNorm) share.load(sum.residual, row, count, residual);
    float v[kUnits][kElements<T>];
    share.receive<T>(row, at, count, v);
    if (!group.alone && row + grid >= sum.rows) admit_next();
    const int64_t unit = int64_t{row} * sum.row_units + column;
    if constexpr (kNorm) {
      add_norm<T>(sum, count, unit, column, residual, v);
    } else {
#pragma unroll
      for (int j = 0; j < kUnits; ++j) {
        if (j < count) sum.x[unit + j * kThreads] = pack<T>(v[j]);
      }
    }
  }
}

template <bool kNorm>
void launch_sum(
    const char* what, const OneShotGroup& group, DType dtype, OneShotSum sum, cudaStream_t stream) {
  const auto run = [&](auto kernel) {
    const int threads = std::min(kThreads, (sum.row_units + 31) / 32 * 32);
    launch(what, kernel, static_cast<unsigned>(std::min(sum.rows, kOneShotBlocks)),
        static_cast<unsigned>(threads), 0, stream, group, sum);
  };
  if (dtype == DType::kF32) {
    run(one_shot_kernel<float, kNorm>);
  } else if (dtype == DType::kF16) {
    run(one_shot_kernel<__half, kNorm>);
  } else {
    CHECK(dtype == DType::kBF16);
    run(one_shot_kernel<__nv_bfloat16, kNorm>);
  }
}

bool in_units(const TensorView& t) {
  return t.contiguous() && reinterpret_cast<uintptr_t>(t.data) % 8 == 0;
}

constexpr int kGatherThreads = 256;

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

bool one_shot_supports(int size, const TensorView& x) {
  const int64_t bytes = dtype_bytes(x.dtype, x.count());
  return bytes > 0 && bytes % 8 == 0 && bytes <= one_shot_limit(size) && in_units(x);
}

void one_shot_all_reduce(const OneShotGroup& group, const TensorView& x, cudaStream_t stream) {
  CHECK(one_shot_supports(group.size, x));
  constexpr int kLeast = 256;  // units of a block: fewer make no sum faster
  OneShotSum sum{};
  sum.x = x.as<uint2>();
  sum.units = static_cast<int>(dtype_bytes(x.dtype, x.count()) / 8);
  sum.row_units = std::max(kLeast, (sum.units + kOneShotBlocks - 1) / kOneShotBlocks);
  sum.rows = (sum.units + sum.row_units - 1) / sum.row_units;
  launch_sum<false>("one_shot_all_reduce", group, x.dtype, sum, stream);
}

bool one_shot_add_norm_supports(int size, const TensorView& x) {
  const int64_t row_bytes = dtype_bytes(x.dtype, x.cols());
  const int64_t block_rows = (x.rows() + kOneShotBlocks - 1) / kOneShotBlocks;
  return x.count() > 0 && row_bytes % 8 == 0 && block_rows * row_bytes <= 8 * kBlockUnits &&
         x.rows() * row_bytes <= one_shot_norm_limit(size) && in_units(x);
}

void one_shot_add_norm(const OneShotGroup& group, const TensorView& x, const TensorView& residual,
    const TensorView& weight, float eps, const TensorView& out, cudaStream_t stream) {
  CHECK(one_shot_add_norm_supports(group.size, x) && in_units(residual) && in_units(out) &&
        residual.dtype == x.dtype && out.dtype == x.dtype && residual.count() == x.count() &&
        out.count() == x.count() && weight.dtype == DType::kF32 && weight.count() == x.cols() &&
        reinterpret_cast<uintptr_t>(weight.data) % 16 == 0);
  OneShotSum sum{};
  sum.x = x.as<uint2>();
  sum.rows = static_cast<int>(x.rows());
  sum.row_units = static_cast<int>(dtype_bytes(x.dtype, x.cols()) / 8);
  sum.units = sum.rows * sum.row_units;
  sum.residual = residual.as<uint2>();
  sum.out = out.as<uint2>();
  sum.weight = weight.as<float>();
  sum.eps = eps;
  launch_sum<true>("one_shot_add_norm", group, x.dtype, sum, stream);
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
  const dim3 grid(static_cast<unsigned>((width + kGatherThreads - 1) / kGatherThreads),
      static_cast<unsigned>(std::min<int64_t>(out.rows(), 65535)));
  const auto launch = [&]<typename V>(V* to) {
    interleave_kernel<V><<<grid, kGatherThreads, 0, stream>>>(
        static_cast<const V*>(gathered), to, out.rows(), columns);
  };
  packed ? launch(out.as<float4>()) : launch(out.as<float>());
  check_cuda(cudaGetLastError(), "interleave_cols");
}

}  // namespace millrace::cuda
