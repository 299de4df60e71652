// Few rows times a weight matrix: as fast as the weights stream from memory.
//
// The weights are the A operand of mma.m16n8k16 (16 rows of w), the rows of x its B operand (8
// columns, unused ones zero), so that arithmetic costs the same for 1 and for 8 rows and never
// limits. Fragments come from global memory directly, 16 bytes a lane: the sum over k may take its
// terms in any order, so lane t of a group of four gives its 8 consecutive k to the fragment
// positions it owns, in x and w alike. A block owns 16 or 32 rows of w; its warps take chunks of
// k in turn and are summed in warp order: the same bits at every run.
#include <algorithm>

#include "engine/core/cuda/launch.cuh"
#include "engine/kernels/cuda/gemm.h"
#include "engine/kernels/cuda/math.cuh"

namespace millrace::cuda {

namespace {

constexpr int kMaxWarps = 8;

// Strides in elements.
template <typename T, typename Out>
struct SkinnyArgs {
  const T* x;
  const T* w;
  const T* bias;  // may be null
  Out* out;
  int64_t ldx, ldw, ldo;
  int m, n, k;
  bool adds;  // to what out holds
};

// 16 bytes, or zeros where `inside` is false: a predicate, so that loads stand side by side without
// branches. Weights pass once and stay out of L1, where x lives; x is no constant of the launch,
// which begins before x is there.
__device__ __forceinline__ uint4 load_weights(const void* from, bool inside) {
  uint4 v{};
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %5, 0;\n"
      "@p ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];}"
      : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
      : "l"(from), "r"(static_cast<int>(inside)));
  return v;
}
__device__ __forceinline__ uint4 load_cached(const void* from, bool inside) {
  uint4 v{};
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %5, 0;\n"
      "@p ld.global.v4.u32 {%0, %1, %2, %3}, [%4];}"
      : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
      : "l"(from), "r"(static_cast<int>(inside))
      : "memory");
  return v;
}

// d += a · b, shapes 16x16 and 16x8.
template <typename T>
__device__ __forceinline__ void mma(
    float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
}

// kXTiles groups of 8 rows of x; kWTiles groups of 16 rows of w; kSteps of 32 k in a chunk. While
// one chunk is multiplied the next is on its way.
template <typename T, typename Out, int kXTiles, int kWTiles, int kSteps>
__global__ void __launch_bounds__(32 * kMaxWarps, 2) skinny_kernel(SkinnyArgs<T, Out> args) {
  constexpr int kRows = 16 * kWTiles;
  constexpr int kChunk = 32 * kSteps;
  struct Fragments {
    uint4 w[kSteps][2 * kWTiles];  // rows g and g + 8 of each tile
    uint4 x[kSteps][kXTiles];
  };
  const int warp = threadIdx.x / 32, num_warps = blockDim.x / 32;
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int n0 = blockIdx.x * kRows;
  const T* w_rows[2 * kWTiles];
#pragma unroll
  for (int i = 0; i < 2 * kWTiles; ++i) {  // rows beyond the last repeat it and are not stored
    w_rows[i] = args.w + min(n0 + 8 * i + g, args.n - 1) * args.ldw + 8 * t;
  }
  const T* x_rows[kXTiles];
#pragma unroll
  for (int i = 0; i < kXTiles; ++i) x_rows[i] = args.x + (8 * i + g) * args.ldx + 8 * t;
  const auto load_w = [&](int chunk, Fragments& to) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int k = chunk * kChunk + 32 * s;
#pragma unroll
      for (int i = 0; i < 2 * kWTiles; ++i) {
        to.w[s][i] = load_weights(w_rows[i] + k, k + 8 * t < args.k);  // k is a multiple of 8
      }
    }
  };
  const auto load_x = [&](int chunk, Fragments& to) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int k = chunk * kChunk + 32 * s;
#pragma unroll
      for (int i = 0; i < kXTiles; ++i) {
        to.x[s][i] = load_cached(x_rows[i] + k, k + 8 * t < args.k && 8 * i + g < args.m);
      }
    }
  };
  const auto load = [&](int chunk, Fragments& to) {
    if (chunk * kChunk >= args.k) return;
    load_w(chunk, to);
    load_x(chunk, to);
  };
  float sums[kXTiles][kWTiles][4] = {};
  const auto multiply = [&](const Fragments& from) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int i = 0; i < kXTiles; ++i) {
#pragma unroll
        for (int j = 0; j < kWTiles; ++j) {
          const uint4 a = from.w[s][2 * j], b = from.w[s][2 * j + 1], x = from.x[s][i];
          mma<T>(sums[i][j], a.x, b.x, a.y, b.y, x.x, x.y);
          mma<T>(sums[i][j], a.z, b.z, a.w, b.w, x.z, x.w);
        }
      }
    }
  };

  const int chunks = (args.k + kChunk - 1) / kChunk;
  Fragments even, odd;
  admit_next();
  if (warp < chunks) load_w(warp, even);
  if (warp + num_warps < chunks) load_w(warp + num_warps, odd);
  wait_for_inputs();
  if (warp < chunks) load_x(warp, even);
  if (warp + num_warps < chunks) load_x(warp + num_warps, odd);
  for (int c = warp; c < chunks; c += 2 * num_warps) {
    multiply(even);
    if (c + num_warps >= chunks) break;
    load(c + 2 * num_warps, even);
    multiply(odd);
    load(c + 3 * num_warps, odd);
  }

  // [warp][row of x][row of w]; the padding spreads the stores below over all banks.
  __shared__ float partial[kMaxWarps][8 * kXTiles][kRows + 4];
#pragma unroll
  for (int i = 0; i < kXTiles; ++i) {
#pragma unroll
    for (int j = 0; j < kWTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        partial[warp][8 * i + 2 * t + e % 2][16 * j + g + e / 2 * 8] = sums[i][j][e];
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < args.m * kRows; i += blockDim.x) {
    const int row = i / kRows, n = i % kRows;
    if (n0 + n >= args.n) continue;
    float sum = 0;
    for (int other = 0; other < num_warps; ++other) sum += partial[other][row][n];
    if (args.bias != nullptr) sum += to_float(args.bias[n0 + n]);
    Out& to = args.out[row * args.ldo + n0 + n];
    to = from_float<Out>(args.adds ? to_float(to) + sum : sum);
  }
}

template <typename T, typename Out>
void launch_skinny(const TensorView& x, const TensorView& w, const TensorView& bias,
    const TensorView& out, bool adds, cudaStream_t stream) {
  const auto width = [](const TensorView& v) { return v.stride / dtype_bytes(v.dtype, 1); };
  const SkinnyArgs<T, Out> args{x.as<T>(), w.as<T>(), bias.as<T>(), out.as<Out>(), width(x),
      width(w), width(out), static_cast<int>(x.rows()), static_cast<int>(w.rows()),
      static_cast<int>(w.cols()), adds};
  const auto start = [&](auto* kernel, int rows) {
    launch("skinny_gemm", kernel, static_cast<unsigned>((args.n + rows - 1) / rows), 32 * kMaxWarps,
        0, stream, args);
  };
  // More rows of x want more rows of w per load of x.
  if (args.m <= 4) {
    start(skinny_kernel<T, Out, 1, 1, 4>, 16);
  } else if (args.m <= 8) {
    start(skinny_kernel<T, Out, 1, 2, 2>, 32);
  } else {
    start(skinny_kernel<T, Out, 2, 2, 1>, 32);
  }
}

template <typename T, typename Out>
__global__ void fill_rows_kernel(const T* row, Out* out, int64_t ldo, int n) {
  begin_kernel();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[blockIdx.y * ldo + i] = from_float<Out>(to_float(row[i]));
}

__global__ void touch_kernel(volatile uint8_t* x) {
  begin_kernel();
  *x = *x;
}

// body.operator()<T, Out>() for the types of x and out.
template <typename Body>
void dispatch_types(DType act, DType out, const Body& body) {
  dispatch_act(act, [&]<typename T>() {
    if (out == act) return body.template operator()<T, T>();
    CHECK(out == DType::kF32, "a product as {}", dtype_info(out).name);
    body.template operator()<T, float>();
  });
}

}  // namespace

bool skinny_gemm_supports(const TensorView& x, const TensorView& w, const TensorView& out) {
  return x.rows() >= 1 && x.rows() <= 16 && w.rows() >= 1 && w.rows() <= 1 << 30 && w.cols() >= 8 &&
         w.cols() <= 1 << 30 && x.dtype != DType::kF32 && in_packs(x, w) &&
         (out.dtype == x.dtype || out.dtype == DType::kF32);
}

void skinny_gemm(const TensorView& x, const TensorView& w, const TensorView& bias,
    const TensorView& out, bool adds, cudaStream_t stream) {
  CHECK(skinny_gemm_supports(x, w, out));
  dispatch_types(x.dtype, out.dtype, [&]<typename T, typename Out>() {
    if constexpr (!std::is_same_v<T, float>) launch_skinny<T, Out>(x, w, bias, out, adds, stream);
  });
}

void touch(const TensorView& x, cudaStream_t stream) {
  launch("touch", touch_kernel, 1, 1, 0, stream, static_cast<volatile uint8_t*>(x.data));
}

void fill_rows(const TensorView& row, const TensorView& out, cudaStream_t stream) {
  const auto n = static_cast<int>(out.cols());
  const dim3 grid(static_cast<unsigned>((n + 255) / 256), static_cast<unsigned>(out.rows()));
  dispatch_types(row.dtype, out.dtype, [&]<typename T, typename Out>() {
    launch("fill_rows", fill_rows_kernel<T, Out>, grid, 256, 0, stream, row.as<T>(), out.as<Out>(),
        out.stride / static_cast<int64_t>(sizeof(Out)), n);
  });
}

}  // namespace millrace::cuda
