// What lies between the projections and attention: norms of heads, rotation, and the write to the
// paged cache, in one pass over q, k and v.
#include <algorithm>

#include "engine/core/cuda/launch.cuh"
#include "engine/kernels/cuda/kernels.h"
#include "engine/kernels/cuda/math.cuh"

namespace millrace::cuda {

namespace {

// Norms a head, of which each of its blockDim.x threads has two packs, at `first` and `second`; not
// where the weight is null. The whole block calls.
template <int N>
__device__ void norm_head(float (&x)[2][N], const float* weight, int32_t first, int32_t second,
    int32_t head_dim, float eps) {
  __shared__ float squares[1024];
  float* const of_head = squares + threadIdx.y * blockDim.x;
  float own = 0;
  for (int i = 0; i < 2 * N; ++i) own += x[i / N][i % N] * x[i / N][i % N];
  __syncthreads();  // those of the heads before have been read
  of_head[threadIdx.x] = own;
  __syncthreads();
  if (weight == nullptr) return;
  float sum = 0;
  for (unsigned i = 0; i < blockDim.x; ++i) sum += of_head[i];
  const float factor = 1.0f / sqrtf(sum / static_cast<float>(head_dim) + eps);
  float scale[2][N];
  load_floats(weight + first, scale[0]);
  load_floats(weight + second, scale[1]);
  for (int i = 0; i < 2 * N; ++i) x[i / N][i % N] *= factor * scale[i / N][i % N];
}

// One block a token; threadIdx.x counts packs of N pairs of a head, threadIdx.y heads: those of q,
// then k, then v (which is only copied). The first `half` pairs are turned. kNormed: heads of q and
// k are normed where there is a weight.
template <typename T, int N, bool kInterleaved, bool kNormed>
__global__ void rope_kernel(Rows<T> q, Rows<const T> k, Rows<const T> v, const float* q_norm,
    const float* k_norm, float eps, Rows<const float> cos_sin, int32_t half, AttentionShape shape,
    BatchView batch, Rows<T> k_cache, Rows<T> v_cache) {
  begin_kernel();
  const int32_t token = static_cast<int32_t>(blockIdx.x);
  const int32_t pair = static_cast<int32_t>(threadIdx.x) * N;
  const bool turns = pair < half, together = kInterleaved || !turns;
  const int32_t first = together ? 2 * pair : pair;
  const int32_t second = first + (together ? N : half);
  const int32_t position = batch.positions[token];
  float cosines[N], sines[N];
  if (turns) {
    load_floats(cos_sin[position] + pair, cosines);
    load_floats(cos_sin[position] + half + pair, sines);
  }
  const int32_t first_k = shape.num_heads, first_v = first_k + shape.num_kv_heads;
  const int32_t num_heads = first_v + shape.num_kv_heads;
  // With norms all threads go as many turns, for they meet.
  for (auto head = static_cast<int32_t>(threadIdx.y);
       kNormed ? head - static_cast<int32_t>(threadIdx.y) < num_heads : head < num_heads;
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
    float x[2][N] = {};
    if (!kNormed || head < num_heads) {
      load_floats(from + first, x[0]);
      load_floats(from + second, x[1]);
    }
    if constexpr (kNormed) {
      const float* weight = head < first_k ? q_norm : head < first_v ? k_norm : nullptr;
      norm_head(x, weight, first, second, shape.head_dim, eps);
      if (head >= num_heads) continue;
    }
    for (int j = 0; j < N && turns && !is_v; ++j) {
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

}  // namespace

void rope_kv_write(const TensorView& q, const TensorView& k, const TensorView& v,
    const HeadNorms& norms, const RopeTable& rope, const AttentionShape& shape,
    const BatchView& batch, const KvCacheView& cache, cudaStream_t stream) {
  const TensorView& table = rope.cos_sin.view;
  const int64_t turned = table.data != nullptr ? table.cols() : 0;
  const bool normed = norms.q.data != nullptr || norms.k.data != nullptr;
  CHECK(q.dtype == k.dtype && q.dtype == v.dtype && q.dtype == cache.k.dtype &&
        q.dtype == cache.v.dtype && table.dtype == DType::kF32);
  CHECK(shape.head_dim % 2 == 0 && shape.head_dim <= 2048 && turned % 2 == 0 &&
        turned <= shape.head_dim);
  for (const TensorView* norm : {&norms.q, &norms.k}) {
    CHECK(norm->data == nullptr || is_vector(*norm, shape.head_dim));
  }
  if (batch.num_tokens == 0) return;
  const int64_t heads = shape.num_heads + 2 * int64_t{shape.num_kv_heads};
  dispatch_act(q.dtype, [&]<typename T>() {
    const bool aligned = in_packs(q, k, v, cache.k, cache.v) && (turned == 0 || in_packs(table)) &&
                         vectors_in_packs(norms.q, norms.k) &&
                         shape.head_dim / 2 % kPackSize<T> == 0 && turned / 2 % kPackSize<T> == 0;
    dispatch_packs<T>(aligned, [&]<int N>() {
      const int64_t width = shape.head_dim / 2 / N;
      const int64_t most = batch.num_tokens < 256 ? 512 : 256;  // threads
      const int64_t turns = ceil_div(heads, std::max<int64_t>(1, most / width));
      const dim3 block(static_cast<unsigned>(width), ceil_div(heads, turns));
      auto* kernel =
          rope.interleaved
              ? (normed ? rope_kernel<T, N, true, true> : rope_kernel<T, N, true, false>)
              : (normed ? rope_kernel<T, N, false, true> : rope_kernel<T, N, false, false>);
      launch("rope_kv_write", kernel, static_cast<unsigned>(batch.num_tokens), block, 0, stream,
          Rows<T>(q), Rows<const T>(k), Rows<const T>(v), norms.q.as<float>(), norms.k.as<float>(),
          norms.eps, Rows<const float>(table), static_cast<int32_t>(turned / 2), shape, batch,
          Rows<T>(cache.k), Rows<T>(cache.v));
    });
  });
}

}  // namespace millrace::cuda
