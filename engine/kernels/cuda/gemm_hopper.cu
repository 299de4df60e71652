// Up to 128 rows times a weight matrix on Hopper: as fast as the weights stream from memory.
//
// A tile is 128 rows of w by all rows of x, its products wgmma's with w as the 64-row operand. One
// thread brings w and x by tensor copies into a ring of stages that fills the multiprocessor's
// shared memory; w does not depend on the kernels before, so the ring is full of it when they end.
// Where whole tiles would leave multiprocessors idle, each takes an equal run of steps along K
// through the tiles (Stream-K, Osama et al. 2023): a tile's parts meet in global memory, and the
// last block to arrive adds them in the order of their steps: the same bits at every run.
//
// Gated (SwiGLU, GeGLU): each 16 rows of a tile are 8 of gate and the same 8 of up, so that a pair
// lies in one thread's sums.
#include <algorithm>

#include "engine/core/cuda/launch.cuh"
#include "engine/kernels/cuda/gemm.h"
#include "engine/kernels/cuda/hopper.cuh"
#include "engine/kernels/cuda/math.cuh"

namespace millrace::cuda {

namespace {

using hopper::Barrier;

constexpr int kRows = kStreamTileRows, kDepth = 64;  // of a tile of w; a step along K
constexpr int kConsumers = 256, kThreads = kConsumers + 32;
constexpr int kMaxCols = kStreamMaxCols, kMaxTiles = kStreamMaxTiles, kMaxBlocks = kStreamMaxBlocks;
constexpr int kWeightBytes = kRows * kDepth * 2;
constexpr int kSharedLimit = 227 << 10;
// A column of sums is 4 longer than the tile, so that a warp's stores hit all banks.
constexpr int kColumn = kRows + 4;

// Shared memory for kCols rows of x.
template <int kCols>
struct Ring {
  static constexpr int kStageBytes = kWeightBytes + kCols * kDepth * 2;
  static constexpr int kSumBytes = kCols * kColumn * 4;
  static constexpr int kStages = std::min(12, (kSharedLimit - kSumBytes - 1280) / kStageBytes);
  static constexpr int kBytes = kStages * kStageBytes + kSumBytes + 1280;
};

// Strides in elements. n: columns of out.
template <typename T, typename Out>
struct StreamArgs {
  const T* bias;  // may be null; of gate, then of up
  Out* out;
  int64_t ldo;
  int m, n, tiles, steps;  // steps: of a tile
  bool adds, gelu;         // to what out holds; the gate's activation
  uint32_t* arrived;       // [tiles] parts of a tile that are there; zeros between launches
  float4* parts;           // [2 * blocks, sums]: a block's first and last tile when not whole
};

#ifdef MILLRACE_ON_HOPPER

struct Stages {
  uint8_t* data;
  float* sums;  // [kCols][kColumn]
  Barrier *full, *free;
};
// Block b takes steps [begin_of(b), begin_of(b + 1)) of all tiles' steps in a row.
struct Share {
  int steps, total, blocks;
  __device__ int begin_of(int block) const {
    return static_cast<int>(int64_t{total} * block / blocks);
  }
  __device__ int block_of(int step) const {
    return static_cast<int>((int64_t{step + 1} * blocks - 1) / total);
  }
};

// One warp; its first thread has the barriers to itself until the block meets: the ring is filling
// by then.
template <int kCols>
__device__ void bring_stages(
    const Stages& stages, const Share& share, const CUtensorMap* w_map, const CUtensorMap* x_map) {
  using R = Ring<kCols>;
  const bool leads = threadIdx.x == kConsumers;
  if (leads) {
    hopper::prefetch_map(w_map);
    hopper::prefetch_map(x_map);
    for (int i = 0; i < R::kStages; ++i) {
      hopper::init(stages.full + i, 1);
      hopper::init(stages.free + i, kConsumers / 32);
    }
    hopper::fence_async();
  }
  const int begin = share.begin_of(blockIdx.x), end = share.begin_of(blockIdx.x + 1);
  const auto weights = [&](int step) {
    const int stage = (step - begin) % R::kStages;
    hopper::arrive_expecting(stages.full + stage, R::kStageBytes);
    hopper::copy_box(stages.data + stage * R::kStageBytes, w_map, step % share.steps * kDepth, 0, 0,
        step / share.steps * (kRows / 16), stages.full + stage);
  };
  const auto inputs = [&](int step) {
    const int stage = (step - begin) % R::kStages;
    hopper::copy_box(stages.data + stage * R::kStageBytes + kWeightBytes, x_map,
        step % share.steps * kDepth, 0, 0, 0, stages.full + stage);
  };
  const int early = min(end, begin + R::kStages);
  for (int step = begin; leads && step < early; ++step) weights(step);
  __syncwarp();
  __syncthreads();
  wait_for_inputs();
  if (!leads) return;
  for (int step = begin; step < early; ++step) inputs(step);
  for (int step = early; step < end; ++step) {
    const int i = step - begin;
    hopper::wait(stages.free + i % R::kStages, i / R::kStages % 2 ^ 1);
    weights(step);
    inputs(step);
  }
}

// Leaves this block's part of a tile for the block that arrives last; true in that one, whose sums
// are then the whole tile's.
template <int kCols, typename Args>
__device__ bool join_parts(const Args& a, const Share& share, int tile, float (&sums)[kCols / 2]) {
  const int block = blockIdx.x;
  const int first = share.block_of(tile * share.steps);
  const int last = share.block_of((tile + 1) * share.steps - 1);
  if (first == last) return true;
  const auto part = [&](int of) {
    return a.parts + (2 * of + (of == first ? 1 : 0)) * (kCols / 8 * kConsumers) + threadIdx.x;
  };
#pragma unroll
  for (int i = 0; i < kCols / 8; ++i) {
    __stcg(part(block) + i * kConsumers,
        make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]));
  }
  __shared__ uint32_t before;
  __threadfence();
  hopper::sync_some<kConsumers>(1);
  if (threadIdx.x == 0) before = atomicAdd(a.arrived + tile, 1);
  hopper::sync_some<kConsumers>(1);
  if (before != static_cast<uint32_t>(last - first)) return false;
  __threadfence();
  if (threadIdx.x == 0) a.arrived[tile] = 0;
  // Loads of kAtOnce parts are under way together.
  constexpr int kAtOnce = kCols <= 16 ? 4 : 1, kQuads = kCols / 8;
#pragma unroll
  for (int i = 0; i < kCols / 2; ++i) sums[i] = 0;
  for (int base = first; base <= last; base += kAtOnce) {
    float4 more[kAtOnce][kQuads];
#pragma unroll
    for (int of = 0; of < kAtOnce; ++of) {
#pragma unroll
      for (int i = 0; i < kQuads; ++i) {
        more[of][i] = base + of <= last ? __ldcg(part(base + of) + i * kConsumers) : float4{};
      }
    }
#pragma unroll
    for (int i = 0; i < kCols / 2; ++i) {
#pragma unroll
      for (int of = 0; of < kAtOnce; ++of) {
        const float4& m = more[of][i / 4];
        sums[i] += i % 4 == 0 ? m.x : i % 4 == 1 ? m.y : i % 4 == 2 ? m.z : m.w;
      }
    }
  }
  return true;
}

// The sums to shared memory as [column][row]. A thread 4 g + t of a warp holds rows g and g + 8, of
// every 8 columns 2 t and 2 t + 1.
template <int kCols>
__device__ void store_sums(const float (&sums)[kCols / 2], float* to) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int row = threadIdx.x / 32 * 16 + g;
#pragma unroll
  for (int i = 0; i < kCols / 2; ++i) {
    to[(i / 4 * 8 + 2 * t + i % 2) * kColumn + row + i / 2 % 2 * 8] = sums[i];
  }
}

template <typename T, typename Out, bool kGated>
__device__ void write_tile(const StreamArgs<T, Out>& a, const float* sums, int tile) {
  constexpr int kWidth = kGated ? kRows / 2 : kRows, kQuads = kWidth / 4;
  for (int i = threadIdx.x; i < a.m * kQuads; i += kConsumers) {
    const int m = i / kQuads, o = i % kQuads * 4, n = tile * kWidth + o;
    if (n >= a.n) continue;
    const auto load = [&](int row, int bias_at, float(&v)[4]) {
      load_floats(sums + m * kColumn + row, v);
      for (int j = 0; a.bias != nullptr && j < 4; ++j) v[j] += to_float(a.bias[bias_at + j]);
    };
    float v[4];
    load(kGated ? o / 8 * 16 + o % 8 : o, n, v);
    if constexpr (kGated) {
      float up[4];
      load(o / 8 * 16 + o % 8 + 8, a.n + n, up);
      for (int j = 0; j < 4; ++j) v[j] = gated(v[j], up[j], a.gelu);
    }
    Out* to = a.out + m * a.ldo + n;
    if (a.adds) {
      float before[4];
      load_floats(to, before);
      for (int j = 0; j < 4; ++j) v[j] += before[j];
    }
    store_floats(to, v);
  }
}

// The two warpgroups: 64 rows of w each.
template <typename T, typename Out, int kCols, bool kGated>
__device__ void multiply(const StreamArgs<T, Out>& a, const Stages& stages, const Share& share) {
  using R = Ring<kCols>;
  const int warpgroup = threadIdx.x / 128;
  const auto release = [&](int i) {
    if (threadIdx.x % 32 == 0) hopper::arrive(stages.free + i % R::kStages);
  };
  wait_for_inputs();  // what out holds
  const int end = share.begin_of(blockIdx.x + 1);
  int i = 0;
  for (int step = share.begin_of(blockIdx.x); step < end;) {
    const int tile = step / share.steps;
    const int stop = min(end, (tile + 1) * share.steps), first = i;
    float sums[kCols / 2];
    for (; step < stop; ++step, ++i) {
      hopper::wait(stages.full + i % R::kStages, i / R::kStages % 2);
      const uint8_t* w = stages.data + i % R::kStages * R::kStageBytes;
      hopper::fence_registers();
#pragma unroll
      for (int k = 0; k < kDepth / 16; ++k) {
        hopper::product_abt<T>(sums, hopper::descriptor(w + warpgroup * 64 * 128 + k * 32, 16),
            hopper::descriptor(w + kWeightBytes + k * 32, 16), i > first || k > 0);
      }
      hopper::commit_products();
      if (i == first) continue;
      hopper::wait_products<1>();
      release(i - 1);
    }
    hopper::wait_products<0>();
    release(i - 1);
    if (!join_parts<kCols>(a, share, tile, sums)) continue;
    hopper::sync_some<kConsumers>(1);  // the tile before has been written
    store_sums<kCols>(sums, stages.sums);
    hopper::sync_some<kConsumers>(1);
    write_tile<T, Out, kGated>(a, stages.sums, tile);
  }
}

#endif  // MILLRACE_ON_HOPPER

template <typename T, typename Out, int kCols, bool kGated>
__global__ void __launch_bounds__(kThreads, 1) stream_kernel(StreamArgs<T, Out> a,
    const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap x_map) {
#ifdef MILLRACE_ON_HOPPER
  using R = Ring<kCols>;
  admit_next();
  extern __shared__ uint8_t unaligned[];
  Stages stages;
  stages.data = unaligned + (1024 - hopper::address(unaligned) % 1024) % 1024;
  stages.sums = reinterpret_cast<float*>(stages.data + R::kStages * R::kStageBytes);
  stages.full = reinterpret_cast<Barrier*>(stages.sums + kCols * kColumn);
  stages.free = stages.full + R::kStages;
  const Share share{a.steps, a.tiles * a.steps, static_cast<int>(gridDim.x)};
  if (threadIdx.x >= kConsumers) {
    bring_stages<kCols>(stages, share, &w_map, &x_map);
  } else {
    __syncthreads();
    multiply<T, Out, kCols, kGated>(a, stages, share);
  }
#endif
}

// Whole tiles, or equal parts of them, where that keeps most of the multiprocessors busy; else an
// equal number of steps for all.
int choose_blocks(int tiles, int steps, int num_sms) {
  const int most = std::min(num_sms, kMaxBlocks);
  const int turns = (tiles + most - 1) / most;
  const int even = turns > 1 ? (tiles + turns - 1) / turns : tiles * std::min(most / tiles, steps);
  return even >= most * 8 / 10 ? even : std::min(most, tiles * steps);
}

template <typename T, typename Out, int kCols, bool kGated>
void enqueue(const TensorView& x, const TensorView& w, const TensorView& bias,
    const TensorView& out, bool adds, bool gelu, const StreamWorkspace& space,
    cudaStream_t stream) {
  constexpr int kShared = Ring<kCols>::kBytes;
  const int64_t k = w.cols(), n = out.cols(), ld = w.stride;
  const StreamArgs<T, Out> args{bias.as<T>(), out.as<Out>(),
      out.stride / static_cast<int64_t>(sizeof(Out)), static_cast<int>(x.rows()),
      static_cast<int>(n), static_cast<int>((w.rows() + kRows - 1) / kRows),
      static_cast<int>((k + kDepth - 1) / kDepth), adds, gelu, static_cast<uint32_t*>(space.data),
      reinterpret_cast<float4*>(static_cast<uint32_t*>(space.data) + kMaxTiles)};
  const CUtensorMap w_map = kGated ? hopper::tensor_map(w.as<T>(), {k, 8, 2, n / 8},
                                         {ld, n * ld, 8 * ld}, {kDepth, 8, 2, kRows / 16})
                                   : hopper::tensor_map(w.as<T>(), {k, 8, 2, n / 16},
                                         {ld, 8 * ld, 16 * ld}, {kDepth, 8, 2, kRows / 16});
  const CUtensorMap x_map = hopper::tensor_map(x.as<T>(), {k, x.rows(), 1, 1},
      {x.stride, x.stride * x.rows(), x.stride * x.rows()}, {kDepth, kCols, 1, 1});
  auto* kernel = stream_kernel<T, Out, kCols, kGated>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
      "shared memory of a product");
  launch("stream_gemm", kernel,
      static_cast<unsigned>(choose_blocks(args.tiles, args.steps, space.num_sms)), kThreads,
      kShared, stream, args, w_map, x_map);
}

template <typename T, typename Out, bool kGated>
void dispatch_cols(const TensorView& x, const TensorView& w, const TensorView& bias,
    const TensorView& out, bool adds, bool gelu, const StreamWorkspace& space,
    cudaStream_t stream) {
  const int64_t m = x.rows();
  if (m <= 8) return enqueue<T, Out, 8, kGated>(x, w, bias, out, adds, gelu, space, stream);
  if (m <= 16) return enqueue<T, Out, 16, kGated>(x, w, bias, out, adds, gelu, space, stream);
  if (m <= 32) return enqueue<T, Out, 32, kGated>(x, w, bias, out, adds, gelu, space, stream);
  if (m <= 64) return enqueue<T, Out, 64, kGated>(x, w, bias, out, adds, gelu, space, stream);
  enqueue<T, Out, kMaxCols, kGated>(x, w, bias, out, adds, gelu, space, stream);
}

}  // namespace

bool stream_gemm_supports(
    const TensorView& x, const TensorView& w, const TensorView& out, bool gated) {
  return hopper::available() && x.rows() >= 1 && x.rows() <= kMaxCols && x.dtype != DType::kF32 &&
         w.rows() % 16 == 0 && w.rows() <= kMaxTiles * int64_t{kRows} && w.cols() >= 8 &&
         w.cols() <= 1 << 30 && in_packs(x, w) && out.stride % 8 == 0 &&
         reinterpret_cast<uintptr_t>(out.data) % 16 == 0 &&
         (out.dtype == x.dtype || (out.dtype == DType::kF32 && !gated && out.stride % 16 == 0));
}

void stream_gemm(const TensorView& x, const TensorView& w, const TensorView& bias,
    const TensorView& out, std::optional<Activation> gate, bool adds, const StreamWorkspace& space,
    cudaStream_t stream) {
  CHECK(stream_gemm_supports(x, w, out, gate.has_value()));
  CHECK(w.rows() == out.cols() * (gate ? 2 : 1) && out.rows() == x.rows());
  const bool gelu = gate == Activation::kGeluTanh;
  dispatch_act(x.dtype, [&]<typename T>() {
    if constexpr (!std::is_same_v<T, float>) {
      if (gate) return dispatch_cols<T, T, true>(x, w, bias, out, adds, gelu, space, stream);
      if (out.dtype == x.dtype)
        return dispatch_cols<T, T, false>(x, w, bias, out, adds, gelu, space, stream);
      dispatch_cols<T, float, false>(x, w, bias, out, adds, gelu, space, stream);
    }
  });
}

}  // namespace millrace::cuda
