// The verbs that take one row of a token at a time. All are bound by memory: a block a row, 16
// bytes a thread and access, fp32 in between.
#include <algorithm>

#include "engine/core/cuda/launch.cuh"
#include "engine/kernels/cuda/kernels.h"
#include "engine/kernels/cuda/math.cuh"

namespace millrace::cuda {

namespace {

// Threads of a block that has `items` to do: whole warps, at most `most`.
unsigned threads_for(int64_t items, int64_t most) {
  return static_cast<unsigned>(std::min(ceil_div(items, 32) * int64_t{32}, most));
}

// out[i] = scale * from[indices[i] - first], or zeros outside its rows.
template <typename T, int N>
__global__ void copy_rows_kernel(const int32_t* indices, int64_t first, Rows<const T> from,
    int64_t num_rows, float scale, Rows<T> out, int64_t cols) {
  begin_kernel();
  const int64_t row = indices[blockIdx.x] - first;
  const bool inside = row >= 0 && row < num_rows;
  for (int64_t i = int64_t{threadIdx.x} * N; i < cols; i += int64_t{blockDim.x} * N) {
    float x[N] = {};
    if (inside) load_floats(from[row] + i, x);
    for (int j = 0; j < N; ++j) x[j] *= scale;
    store_floats(out[blockIdx.x] + i, x);
  }
}

void copy_rows(std::span<const int32_t> indices, int64_t first, const TensorView& from, float scale,
    const TensorView& out, cudaStream_t stream) {
  CHECK(from.dtype == out.dtype && from.cols() == out.cols(), "{} of {} to {} of {}", from.cols(),
      dtype_info(from.dtype).name, out.cols(), dtype_info(out.dtype).name);
  if (indices.empty()) return;
  dispatch_act(out.dtype, [&]<typename T>() {
    dispatch_packs<T>(in_packs(from, out), [&]<int N>() {
      launch("copying rows", copy_rows_kernel<T, N>, static_cast<unsigned>(indices.size()),
          threads_for(ceil_div(out.cols(), N), 512), 0, stream, indices.data(), first,
          Rows<const T>(from), from.rows(), scale, Rows<T>(out), out.cols());
    });
  });
}

constexpr int kNormThreads = 1024;

template <typename T, int N>
__device__ float squares_of(const Pack<T, N>& pack) {
  float sum = 0;
  for (int j = 0; j < N; ++j) sum += to_float(pack.data[j]) * to_float(pack.data[j]);
  return sum;
}
// The whole block's, of each thread's sum of squares of a row.
__device__ float inverse_rms(float squares, int64_t cols, float eps) {
  return 1.0f / sqrtf(block_reduce(squares, Sum()) / static_cast<float>(cols) + eps);
}

// One block a row. The first kHeld packs of each thread, mostly all it has, stay in registers
// between the passes; what is beyond is read again. The norm is of the sum as it is stored.
// kPost: x is normed with the weight `post` before it is added; `weight` may then be null.
template <typename T, int N, int kHeld, bool kPost>
__global__ void __launch_bounds__(kNormThreads / kHeld)
    add_rms_norm_kernel(Rows<const T> x, const float* post, Rows<T> residual, const float* weight,
        float eps, Rows<T> out, int64_t cols) {
  const int64_t begin = int64_t{threadIdx.x} * N, step = int64_t{blockDim.x} * N;
  const int64_t rest = begin + kHeld * step;
  admit_next();
  float scale[N];
  if (begin < cols && (!kPost || weight != nullptr)) load_floats(weight + begin, scale);
  wait_for_inputs();
  const T* from = x[blockIdx.x];
  T* sum = residual.data == nullptr ? nullptr : residual[blockIdx.x];
  Pack<T, N> held[kHeld], more[kHeld];
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int64_t i = begin + h * step;
    held[h] = i < cols ? load_pack<T, N>(from + i) : Pack<T, N>{};
    if (sum != nullptr) more[h] = i < cols ? load_pack<T, N>(sum + i) : Pack<T, N>{};
  }
  float squares = 0, inner = 1;  // inner: 1 / rms of x
  if constexpr (kPost) {
#pragma unroll
    for (int h = 0; h < kHeld; ++h) squares += squares_of(held[h]);
    for (int64_t i = rest; i < cols; i += step) squares += squares_of(load_pack<T, N>(from + i));
    inner = inverse_rms(squares, cols, eps);
    squares = 0;
  }
  const auto take = [&](int64_t i, Pack<T, N>& v, const Pack<T, N>& r) {
    float more_scale[N] = {};
    if (kPost && i < cols) load_floats(post + i, more_scale);
    for (int j = 0; j < N; ++j) {
      float term = to_float(v.data[j]);
      if constexpr (kPost) term *= inner * more_scale[j];
      if (sum != nullptr) v.data[j] = from_float<T>(term + to_float(r.data[j]));
      squares += to_float(v.data[j]) * to_float(v.data[j]);
    }
    if (sum != nullptr && i < cols) store_pack(sum + i, v);
  };
#pragma unroll
  for (int h = 0; h < kHeld; ++h) take(begin + h * step, held[h], more[h]);
  for (int64_t i = rest; i < cols; i += step) {
    auto v = load_pack<T, N>(from + i);
    take(i, v, sum != nullptr ? load_pack<T, N>(sum + i) : Pack<T, N>{});
  }
  if (kPost && weight == nullptr) return;
  const float factor = inverse_rms(squares, cols, eps);
  const auto write = [&](int64_t i, const Pack<T, N>& v) {
    if (i != begin) load_floats(weight + i, scale);
    float y[N];
    for (int j = 0; j < N; ++j) y[j] = to_float(v.data[j]) * factor * scale[j];
    store_floats(out[blockIdx.x] + i, y);
  };
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    if (begin + h * step < cols) write(begin + h * step, held[h]);
  }
  for (int64_t i = rest; i < cols; i += step) {
    write(i, load_pack<T, N>((sum != nullptr ? sum : from) + i));
  }
}

// One block, of one row of x [n] each.
template <typename T>
__global__ void sum_squares_kernel(Rows<const T> x, int64_t n, Rows<float> sums) {
  begin_kernel();
  float squares = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    const float value = to_float(x[blockIdx.x][i]);
    squares += value * value;
  }
  squares = block_reduce(squares, Sum());
  if (threadIdx.x == 0) *sums[blockIdx.x] = squares;
}
template <typename T>
__global__ void scale_by_rms_kernel(
    Rows<T> x, int64_t n, Rows<const float> sums, float count, const float* weight, float eps) {
  begin_kernel();
  const float factor = 1.0f / sqrtf(*sums[blockIdx.x] / count + eps);
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    x[blockIdx.x][i] = from_float<T>(to_float(x[blockIdx.x][i]) * factor * weight[i]);
  }
}

struct GateMul {
  bool gelu;
  __device__ float operator()(float gate, float up) const { return gated(gate, up, gelu); }
};
struct SoftCap {
  float cap;
  __device__ float operator()(float x, float) const { return cap * tanhf(x / cap); }
};

// out = op(a, b); gridDim.y blocks share a row.
template <typename T, int N, typename Op>
__global__ void combine_kernel(Rows<const T> a, Rows<const T> b, Rows<T> out, int64_t cols, Op op) {
  begin_kernel();
  const int64_t step = int64_t{gridDim.y} * blockDim.x * N;
  for (int64_t i = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * N; i < cols; i += step) {
    float x[N], y[N];
    load_floats(a[blockIdx.x] + i, x);
    load_floats(b[blockIdx.x] + i, y);
    for (int j = 0; j < N; ++j) x[j] = op(x[j], y[j]);
    store_floats(out[blockIdx.x] + i, x);
  }
}

template <typename Op>
void combine(
    const TensorView& a, const TensorView& b, const TensorView& out, Op op, cudaStream_t stream) {
  CHECK(a.dtype == b.dtype && a.dtype == out.dtype && a.cols() == b.cols() &&
        a.cols() == out.cols() && a.rows() == b.rows() && a.rows() == out.rows());
  if (out.rows() == 0) return;
  dispatch_act(out.dtype, [&]<typename T>() {
    dispatch_packs<T>(in_packs(a, b, out), [&]<int N>() {
      // Few rows: all of the GPU at once. Many: fewer, longer blocks.
      constexpr int kThreads = 256;
      const int64_t packs_each = out.rows() < 256 ? 1 : 4;
      const dim3 grid(
          static_cast<unsigned>(out.rows()), ceil_div(out.cols(), kThreads * packs_each * N));
      launch("combining rows", combine_kernel<T, N, Op>, grid, kThreads, 0, stream,
          Rows<const T>(a), Rows<const T>(b), Rows<T>(out), out.cols(), op);
    });
  });
}

// Eight loads in flight per thread; the sum keeps them from being left out.
__global__ void read_all_kernel(const uint4* from, int64_t count, uint32_t* sum) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  uint32_t total = 0;
  int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; i + 7 * stride < count; i += 8 * stride) {
    uint4 words[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) words[j] = __ldcs(from + i + j * stride);
#pragma unroll
    for (int j = 0; j < 8; ++j) total += words[j].x ^ words[j].y ^ words[j].z ^ words[j].w;
  }
  for (; i < count; i += stride) total += from[i].x;
  atomicAdd(sum, total);
}

}  // namespace

void embed(std::span<const int32_t> ids, int32_t first_id, const TensorView& table, float scale,
    const TensorView& out, cudaStream_t stream) {
  copy_rows(ids, first_id, table, scale, out, stream);
}

void gather_rows(const TensorView& x, std::span<const int32_t> rows, const TensorView& out,
    cudaStream_t stream) {
  copy_rows(rows, 0, x, 1.0f, out, stream);
}

namespace {

// add_rms_norm, or with kPost norm_add_norm.
template <bool kPost>
void enqueue_norm(const TensorView& x, const TensorView& post, const TensorView& residual,
    const TensorView& weight, float eps, const TensorView& out, cudaStream_t stream) {
  const bool adds = residual.data != nullptr;
  CHECK(x.dtype == out.dtype && x.cols() == out.cols() && x.rows() == out.rows());
  CHECK(kPost ? is_vector(post, x.cols()) : weight.data != nullptr);
  CHECK(weight.data == nullptr || is_vector(weight, x.cols()));
  CHECK(!adds ||
        (residual.dtype == x.dtype && residual.cols() == x.cols() && residual.rows() == x.rows()));
  if (x.rows() == 0) return;
  const bool aligned =
      in_packs(x, out) && (!adds || in_packs(residual)) && vectors_in_packs(post, weight);
  dispatch_act(x.dtype, [&]<typename T>() {
    dispatch_packs<T>(aligned, [&]<int N>() {
      // Few rows: all the threads a row can use. Many: small blocks, so that some load while others
      // add up.
      const auto start = [&]<int kHeld>() {
        launch(kPost ? "norm_add_norm" : "add_rms_norm", add_rms_norm_kernel<T, N, kHeld, kPost>,
            static_cast<unsigned>(x.rows()),
            threads_for(ceil_div(x.cols(), N * kHeld), kNormThreads / kHeld), 0, stream,
            Rows<const T>(x), post.as<float>(), Rows<T>(adds ? residual : TensorView()),
            weight.as<float>(), eps, Rows<T>(out), x.cols());
      };
      x.rows() < 512 ? start.template operator()<1>() : start.template operator()<4>();
    });
  });
}

}  // namespace

void add_rms_norm(const TensorView& x, const TensorView& residual, const TensorView& weight,
    float eps, const TensorView& out, cudaStream_t stream) {
  enqueue_norm<false>(x, TensorView(), residual, weight, eps, out, stream);
}

void norm_add_norm(const TensorView& x, const TensorView& post, const TensorView& residual,
    const TensorView& weight, float eps, const TensorView& out, cudaStream_t stream) {
  enqueue_norm<true>(
      x, post, residual, weight, eps, weight.data != nullptr ? out : residual, stream);
}

void sum_squares(const TensorView& x, const TensorView& sums, cudaStream_t stream) {
  CHECK(sums.dtype == DType::kF32 && sums.rows() == x.rows() && sums.cols() == 1);
  if (x.rows() == 0) return;
  dispatch_act(x.dtype, [&]<typename T>() {
    launch("sum_squares", sum_squares_kernel<T>, static_cast<unsigned>(x.rows()),
        threads_for(x.cols(), kNormThreads), 0, stream, Rows<const T>(x), x.cols(),
        Rows<float>(sums));
  });
}

void scale_by_rms(const TensorView& x, const TensorView& sums, int64_t count,
    const TensorView& weight, float eps, cudaStream_t stream) {
  CHECK(sums.dtype == DType::kF32 && sums.rows() == x.rows() && sums.cols() == 1 &&
        is_vector(weight, x.cols()));
  if (x.rows() == 0) return;
  dispatch_act(x.dtype, [&]<typename T>() {
    launch("scale_by_rms", scale_by_rms_kernel<T>, static_cast<unsigned>(x.rows()),
        threads_for(x.cols(), kNormThreads), 0, stream, Rows<T>(x), x.cols(),
        Rows<const float>(sums), static_cast<float>(count), weight.as<float>(), eps);
  });
}

void gate_mul(const TensorView& gate, const TensorView& up, Activation act, const TensorView& out,
    cudaStream_t stream) {
  combine(gate, up, out, GateMul{act == Activation::kGeluTanh}, stream);
}

void soft_cap(const TensorView& x, float cap, cudaStream_t stream) {
  CHECK(x.dtype == DType::kF32 && cap > 0);
  combine(x, x, x, SoftCap{cap}, stream);
}

void add(const TensorView& x, const TensorView& y, cudaStream_t stream) {
  combine(x, y, x, Sum(), stream);
}

void read_all(const void* from, int64_t bytes, uint32_t* sum, int num_sms, cudaStream_t stream) {
  CHECK(bytes % 16 == 0);
  read_all_kernel<<<static_cast<unsigned>(num_sms) * 8, 256, 0, stream>>>(
      static_cast<const uint4*>(from), bytes / 16, sum);
  check_cuda(cudaGetLastError(), "read_all");
}

}  // namespace millrace::cuda
