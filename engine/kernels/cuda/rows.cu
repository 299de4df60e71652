// The verbs that take one row of a token at a time. All are bound by memory: a block a row, 16
// bytes a thread and access, fp32 in between.
#include <algorithm>

#include "engine/core/cuda/launch.cuh"
#include "engine/kernels/cuda/kernels.h"
#include "engine/kernels/cuda/math.cuh"

namespace millrace::cuda {

namespace {

// A matrix whose rows may be strided, in elements.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;
  explicit Rows(const TensorView& t)
      : data(t.as<T>()), stride(t.stride / static_cast<int64_t>(sizeof(T))) {}
  __device__ T* operator[](int64_t i) const { return data + i * stride; }
};

unsigned ceil_div(int64_t a, int64_t b) { return static_cast<unsigned>((a + b - 1) / b); }

// Threads of a block that has `items` to do: whole warps, at most `most`.
unsigned threads_for(int64_t items, int64_t most) {
  return static_cast<unsigned>(std::min(ceil_div(items, 32) * int64_t{32}, most));
}

// out[i] = from[indices[i] - first], or zeros outside its rows; `width` words a row.
template <typename Word>
__global__ void copy_rows_kernel(const int32_t* indices, int64_t first, Rows<const Word> from,
    int64_t num_rows, Rows<Word> out, int64_t width) {
  begin_kernel();
  const int64_t row = indices[blockIdx.x] - first;
  const bool inside = row >= 0 && row < num_rows;
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) {
    out[blockIdx.x][i] = inside ? from[row][i] : Word{};
  }
}

void copy_rows(std::span<const int32_t> indices, int64_t first, const TensorView& from,
    const TensorView& out, cudaStream_t stream) {
  CHECK(from.dtype == out.dtype && from.cols() == out.cols() && dtype_bytes(from.dtype, 1) % 2 == 0,
      "{} of {} to {} of {}", from.cols(), dtype_info(from.dtype).name, out.cols(),
      dtype_info(out.dtype).name);
  if (indices.empty()) return;
  const auto copy = [&]<typename Word>() {
    const int64_t width = dtype_bytes(from.dtype, from.cols()) / static_cast<int64_t>(sizeof(Word));
    launch("copying rows", copy_rows_kernel<Word>, static_cast<unsigned>(indices.size()),
        threads_for(width, 512), 0, stream, indices.data(), first, Rows<const Word>(from),
        from.rows(), Rows<Word>(out), width);
  };
  in_packs(from, out) ? copy.operator()<uint4>() : copy.operator()<uint16_t>();
}

constexpr int kNormThreads = 1024;

// One block a row. The first kHeld packs of each thread, mostly all it has, stay in registers
// between the two passes; what is beyond is read again. The norm is of the sum as it is stored.
template <typename T, int N, int kHeld>
__global__ void __launch_bounds__(kNormThreads / kHeld) add_rms_norm_kernel(
    Rows<const T> x, Rows<T> residual, const float* weight, float eps, Rows<T> out, int64_t cols) {
  const int64_t begin = int64_t{threadIdx.x} * N;
  const int64_t step = int64_t{blockDim.x} * N;
  admit_next();
  float scale[N];
  if (begin < cols) load_floats(weight + begin, scale);
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
  float squares = 0;
  const auto take = [&](int64_t i, Pack<T, N>& v, const Pack<T, N>& r) {
    for (int j = 0; j < N; ++j) {
      if (sum != nullptr) v.data[j] = from_float<T>(to_float(v.data[j]) + to_float(r.data[j]));
      squares += to_float(v.data[j]) * to_float(v.data[j]);
    }
    if (sum != nullptr && i < cols) store_pack(sum + i, v);
  };
#pragma unroll
  for (int h = 0; h < kHeld; ++h) take(begin + h * step, held[h], more[h]);
  for (int64_t i = begin + kHeld * step; i < cols; i += step) {
    auto v = load_pack<T, N>(from + i);
    take(i, v, sum != nullptr ? load_pack<T, N>(sum + i) : Pack<T, N>{});
  }
  const float factor = 1.0f / sqrtf(block_reduce(squares, Sum()) / static_cast<float>(cols) + eps);
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
  for (int64_t i = begin + kHeld * step; i < cols; i += step) {
    write(i, load_pack<T, N>((sum != nullptr ? sum : from) + i));
  }
}

// One block a token; threadIdx.x counts packs of N pairs of a head, threadIdx.y heads: those of q,
// then k, then v (which is only copied).
template <typename T, int N, bool kInterleaved>
__global__ void rope_kernel(Rows<T> q, Rows<const T> k, Rows<const T> v, Rows<const float> cos_sin,
    AttentionShape shape, BatchView batch, Rows<T> k_cache, Rows<T> v_cache) {
  begin_kernel();
  const int32_t token = static_cast<int32_t>(blockIdx.x);
  const int32_t half = shape.head_dim / 2;
  const int32_t pair = static_cast<int32_t>(threadIdx.x) * N;
  const int32_t first = kInterleaved ? 2 * pair : pair;
  const int32_t second = kInterleaved ? 2 * pair + N : pair + half;
  const int32_t position = batch.positions[token];
  float cosines[N], sines[N];
  load_floats(cos_sin[position] + pair, cosines);
  load_floats(cos_sin[position] + half + pair, sines);
  const int32_t first_k = shape.num_heads, first_v = first_k + shape.num_kv_heads;
  for (auto head = static_cast<int32_t>(threadIdx.y); head < first_v + shape.num_kv_heads;
       head += static_cast<int32_t>(blockDim.y)) {
    const bool is_v = head >= first_v;
    const int64_t h = head - (is_v ? first_v : head >= first_k ? first_k : 0);
    const T* from = (is_v ? v[token] : head >= first_k ? k[token] : q[token]) + h * shape.head_dim;
    T* to = q[token] + h * shape.head_dim;
    if (head >= first_k) {
      const int32_t sequence = sequence_of(token, batch.cu_tokens.data(), batch.num_single,
          static_cast<int32_t>(batch.block_tables.size()));
      const uint32_t block = batch.block_tables[sequence][position / batch.block_size];
      to = (is_v ? v_cache[block] : k_cache[block]) +
           (h * batch.block_size + position % batch.block_size) * shape.head_dim;
    }
    float x[2][N];
    load_floats(from + first, x[0]);
    load_floats(from + second, x[1]);
    for (int j = 0; j < N && !is_v; ++j) {
      const int i = kInterleaved ? 2 * j : j;  // of the first of the pair among the 2N
      float& a = x[i / N][i % N];
      float& b = kInterleaved ? x[(i + 1) / N][(i + 1) % N] : x[1][j];
      const float turned = a * cosines[j] - b * sines[j];
      b = b * cosines[j] + a * sines[j];
      a = turned;
    }
    store_floats(to + first, x[0]);
    store_floats(to + second, x[1]);
  }
}

struct SiluMul {
  __device__ float operator()(float gate, float up) const {
    return gate / (1.0f + expf(-gate)) * up;
  }
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

void embed(std::span<const int32_t> ids, int32_t first_id, const TensorView& table,
    const TensorView& out, cudaStream_t stream) {
  copy_rows(ids, first_id, table, out, stream);
}

void gather_rows(const TensorView& x, std::span<const int32_t> rows, const TensorView& out,
    cudaStream_t stream) {
  copy_rows(rows, 0, x, out, stream);
}

void add_rms_norm(const TensorView& x, const TensorView& residual, const TensorView& weight,
    float eps, const TensorView& out, cudaStream_t stream) {
  const bool adds = residual.data != nullptr;
  CHECK(x.dtype == out.dtype && x.cols() == out.cols() && x.rows() == out.rows() &&
        weight.dtype == DType::kF32 && weight.count() == x.cols());
  CHECK(!adds || (residual.dtype == x.dtype && residual.cols() == x.cols()));
  if (x.rows() == 0) return;
  const bool aligned = in_packs(x, out) && (!adds || in_packs(residual)) &&
                       reinterpret_cast<uintptr_t>(weight.data) % 16 == 0;
  dispatch_act(x.dtype, [&]<typename T>() {
    dispatch_packs<T>(aligned, [&]<int N>() {
      // Few rows: all the threads a row can use. Many: small blocks, so that some load while others
      // add up.
      const auto start = [&]<int kHeld>() {
        launch("add_rms_norm", add_rms_norm_kernel<T, N, kHeld>, static_cast<unsigned>(x.rows()),
            threads_for(ceil_div(x.cols(), N * kHeld), kNormThreads / kHeld), 0, stream,
            Rows<const T>(x), Rows<T>(adds ? residual : TensorView()), weight.as<float>(), eps,
            Rows<T>(out), x.cols());
      };
      x.rows() < 512 ? start.template operator()<1>() : start.template operator()<4>();
    });
  });
}

void rope_kv_write(const TensorView& q, const TensorView& k, const TensorView& v,
    const RopeTable& rope, const AttentionShape& shape, const BatchView& batch,
    const KvCacheView& cache, cudaStream_t stream) {
  const TensorView& table = rope.cos_sin.view;
  CHECK(q.dtype == k.dtype && q.dtype == v.dtype && q.dtype == cache.k.dtype &&
        q.dtype == cache.v.dtype && table.dtype == DType::kF32);
  CHECK(shape.head_dim % 2 == 0 && shape.head_dim <= 2048 && table.cols() == shape.head_dim);
  if (batch.num_tokens == 0) return;
  const int64_t heads = shape.num_heads + 2 * int64_t{shape.num_kv_heads};
  dispatch_act(q.dtype, [&]<typename T>() {
    const bool aligned =
        in_packs(q, k, v, cache.k, cache.v, table) && shape.head_dim / 2 % kPackSize<T> == 0;
    dispatch_packs<T>(aligned, [&]<int N>() {
      const int64_t width = shape.head_dim / 2 / N;
      const int64_t most = batch.num_tokens < 256 ? 512 : 256;  // threads
      const int64_t turns = ceil_div(heads, std::max<int64_t>(1, most / width));
      const dim3 block(static_cast<unsigned>(width), ceil_div(heads, turns));
      auto* kernel = rope.interleaved ? rope_kernel<T, N, true> : rope_kernel<T, N, false>;
      launch("rope_kv_write", kernel, static_cast<unsigned>(batch.num_tokens), block, 0, stream,
          Rows<T>(q), Rows<const T>(k), Rows<const T>(v), Rows<const float>(table), shape, batch,
          Rows<T>(cache.k), Rows<T>(cache.v));
    });
  });
}

void silu_mul(
    const TensorView& gate, const TensorView& up, const TensorView& out, cudaStream_t stream) {
  combine(gate, up, out, SiluMul(), stream);
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
