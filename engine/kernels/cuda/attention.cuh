// What the attention kernels share: the plan of a step, asynchronous copies of keys and values from
// the paged cache, and one warp's step of FlashAttention-2 (Dao, 2023): 16 query rows against a
// tile of keys on tensor cores (mma.m16n8k16), softmax and sums in fp32.
#pragma once

#include <cuda_runtime.h>

#include "engine/core/cuda/launch.cuh"
#include "engine/kernels/cuda/kernels.h"
#include "engine/kernels/cuda/math.cuh"

namespace millrace::cuda {

constexpr int kPrefillKeys = 64;
constexpr int kPieceKeys = 128;      // what pieces are multiples of
constexpr int kShortestPiece = 512;  // keys below which putting pieces together costs more
constexpr int kDecodeKeys = 16;

__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

struct PrefillPlace {
  PrefillTile tile;
  int kv_head, first_token, num_rows, first_position, begin, end;
};

// Everything a kernel needs. Strides in elements.
template <typename T>
struct AttentionArgs {
  const T* q;
  T* out;
  const T* k;
  const T* v;
  int64_t q_stride, out_stride, block_stride, num_blocks;
  const int32_t* cu_tokens;
  const int32_t* positions;
  const uint32_t* const* block_tables;
  int32_t block_size, block_shift, num_heads, num_kv_heads, head_dim, window;
  int32_t num_single, num_sequences;
  float scale_log2;  // of q·k, times log2(e)
  float cap_log2;    // the soft cap, times log2(e); 0: none
  float cap_scale;   // of q·k inside its tanh, times 2 log2(e)
  const AttentionPlan* plan;
  const int32_t* first_item;  // [num_single + 1] decode items before each sequence
  const PrefillTile* tiles;   // [num_tiles]
  float* partial;             // [items, Hkv, group, D + 2]: sums, then maximum and weight
  float* tile_partial;        // [pieces, Hkv, kPrefillRows, D + 2] of the rows that have several
  __device__ int group() const { return num_heads / num_kv_heads; }
  // A key's weight is exp2 of it. c tanh(x) = c - 2c / (1 + exp(2x)).
  template <bool kCapped>
  __device__ float score(float dot) const {
    if constexpr (!kCapped) return dot * scale_log2;
    return cap_log2 - __fdividef(2 * cap_log2, 1 + fast_exp2(dot * cap_scale));
  }
  // First key that a token at `position` sees.
  __device__ int first_key(int position) const {
    return window > 0 && position >= window ? position - window + 1 : 0;
  }
  __device__ PrefillPlace place(int index, int kv_head) const {
    PrefillPlace at{tiles[index], kv_head};
    at.first_token = cu_tokens[at.tile.sequence];
    at.num_rows = (cu_tokens[at.tile.sequence + 1] - at.first_token) * group();
    at.first_position = positions[at.first_token];
    const int last_row = min(at.tile.first_row + kPrefillRows, at.num_rows) - 1;
    at.end = at.first_position + last_row / group() + 1;
    at.begin =
        first_key(at.first_position + at.tile.first_row / group()) / kPrefillKeys * kPrefillKeys +
        at.tile.piece * plan->piece;
    if (at.tile.piece + 1 < at.tile.num_pieces) at.end = at.begin + plan->piece;
    return at;
  }
  // Where a tile's `row` (of its sequence) leaves what its piece of the keys gave.
  __device__ float* partial_row(const PrefillPlace& at, int piece, int row) const {
    return tile_partial +
           ((int64_t{at.tile.partial + piece} * num_kv_heads + at.kv_head) * kPrefillRows + row -
               at.tile.first_row) *
               (head_dim + 2);
  }
};

// A tile's rows in shared memory are 16 bytes longer than D elements: eight rows at one column
// then lie in eight different groups of banks.
template <int D>
constexpr int kTileStride = D + 8;

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
// 16 bytes, or zeros.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Starts copying keys [first, first + kKeys) of a sequence into k and v tiles; those from `end` on
// become zeros. `first` is a multiple of 16 below `end`, and 16 keys of a head lie side by side in
// one block: block_of(key) gives it. Called by kThreads threads, of which this is `thread`.
template <typename T, int D, int kKeys, int kThreads, typename BlockOf>
__device__ __forceinline__ void load_tile(const AttentionArgs<T>& a, const BlockOf& block_of,
    int kv_head, int first, int end, T* k, T* v, int thread) {
  constexpr int kPacks = D / 8, kParts = kKeys / 16;
  int64_t base[kParts];  // of all parts first: their loads do not wait for each other
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const int key = first + 16 * part < end ? first + 16 * part : first;
    base[part] = block_of(key) * a.block_stride +
                 ((kv_head << a.block_shift) + (key & ((1 << a.block_shift) - 1))) * D;
  }
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
#pragma unroll
    for (int turn = 0; turn < (16 * kPacks + kThreads - 1) / kThreads; ++turn) {
      const int i = thread + turn * kThreads;
      if (16 * kPacks % kThreads != 0 && i >= 16 * kPacks) break;
      const int row = 16 * part + i / kPacks;
      const int to = row * kTileStride<D> + i % kPacks * 8;
      const bool inside = first + row < end;
      const int64_t from = base[part] + (inside ? i * 8 : 0);
      copy_async(k + to, a.k + from, inside);
      copy_async(v + to, a.v + from, inside);
    }
  }
}

template <bool kTransposed>
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* row) {
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row)));
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row)));
  }
}

// d += a · b, shapes 16x16 and 16x8.
template <typename T>
__device__ __forceinline__ void mma_16x8(
    float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

template <typename T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high) {
  const Pack<T, 2> pair{{from_float<T>(low), from_float<T>(high)}};
  return __builtin_bit_cast(uint32_t, pair);
}

// A warp's 16 rows. In the fragments of mma, a thread of number 4 g + t holds rows g and g + 8.
template <typename T, int D>
struct WarpRows {
  uint32_t q[D / 16][4];
  float sums[D / 8][4] = {};  // of exp2(score - max) v; columns 8 i + 2 t and the next
  float max[2] = {-INFINITY, -INFINITY};
  float weight[2] = {};  // of this thread's columns only, until finish()

  // row[h]: q of row g + 8 h, or null for a row of zeros.
  __device__ void load_q(const T* const (&row)[2]) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int s = 0; s < D / 16; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const T* from = row[i % 2];
        q[s][i] = from == nullptr
                      ? 0
                      : *reinterpret_cast<const uint32_t*>(from + 16 * s + i / 2 * 8 + 2 * t);
      }
    }
  }

  // Moves on by a tile of keys. begin, end: which of them rows g and g + 8 see. kHalves 1: there
  // are no rows from 8 on.
  template <int kKeys, int kHalves, bool kCapped>
  __device__ void attend(const AttentionArgs<T>& a, const T* k, const T* v, bool masked,
      const int (&begin)[2], const int (&end)[2]) {
    const int lane = threadIdx.x % 32, t = lane % 4;
    float s[kKeys / 8][4] = {};
    // Steps outside, keys inside: products of different keys do not wait for each other.
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      uint32_t b[kKeys / 16][4];
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        // Matrices by lane / 8: keys 0-7 and 8-15 (bit 1), columns 0-7 and 8-15 (bit 0).
        load_matrices<false>(b[n], k + (16 * n + lane / 16 * 8 + lane % 8) * kTileStride<D> +
                                       16 * step + lane / 8 % 2 * 8);
      }
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        mma_16x8<T>(s[2 * n], q[step], b[n][0], b[n][1]);
        mma_16x8<T>(s[2 * n + 1], q[step], b[n][2], b[n][3]);
      }
    }
    float rescale[2] = {1, 1};
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      float largest = max[h];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int key = 8 * n + 2 * t + j;
          float& score = s[n][2 * h + j];
          score = masked && (key < begin[h] || key >= end[h]) ? -INFINITY
                                                              : a.template score<kCapped>(score);
          largest = fmaxf(largest, score);
        }
      }
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
      const float base = largest == -INFINITY ? 0 : largest;  // no key yet: all weights are 0
      rescale[h] = fast_exp2(max[h] - base);
      max[h] = largest;
      weight[h] *= rescale[h];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          s[n][2 * h + j] = fast_exp2(s[n][2 * h + j] - base);
          weight[h] += s[n][2 * h + j];
        }
      }
    }
    // Maxima settle soon: most tiles change none.
    if (__any_sync(0xffffffffu, rescale[0] != 1 || rescale[1] != 1)) {
#pragma unroll
      for (int i = 0; i < D / 8; ++i) {
#pragma unroll
        for (int j = 0; j < 2 * kHalves; ++j) sums[i][j] *= rescale[j / 2];
      }
    }
#pragma unroll
    for (int n = 0; n < kKeys / 16; ++n) {
      const uint32_t p[4] = {pack_pair<T>(s[2 * n][0], s[2 * n][1]),
          pack_pair<T>(s[2 * n][2], s[2 * n][3]), pack_pair<T>(s[2 * n + 1][0], s[2 * n + 1][1]),
          pack_pair<T>(s[2 * n + 1][2], s[2 * n + 1][3])};
      uint32_t b[D / 16][4];
#pragma unroll
      for (int i = 0; i < D / 16; ++i) {
        // Matrices by lane / 8: keys 0-7 and 8-15 (bit 0), columns 0-7 and 8-15 (bit 1).
        load_matrices<true>(b[i],
            v + (16 * n + lane / 8 % 2 * 8 + lane % 8) * kTileStride<D> + 16 * i + lane / 16 * 8);
      }
#pragma unroll
      for (int i = 0; i < D / 16; ++i) {
        mma_16x8<T>(sums[2 * i], p, b[i][0], b[i][1]);
        mma_16x8<T>(sums[2 * i + 1], p, b[i][2], b[i][3]);
      }
    }
  }

  __device__ void finish() {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      weight[h] += __shfl_xor_sync(0xffffffffu, weight[h], 1);
      weight[h] += __shfl_xor_sync(0xffffffffu, weight[h], 2);
    }
  }
  // The finished row g + 8 h as act.
  __device__ void store(T* to, int h) const {
    const float factor = 1.0f / weight[h];
#pragma unroll
    for (int i = 0; i < D / 8; ++i) {
      *reinterpret_cast<uint32_t*>(to + 8 * i + 2 * (threadIdx.x % 4)) =
          pack_pair<T>(sums[i][2 * h] * factor, sums[i][2 * h + 1] * factor);
    }
  }
  // The same before other pieces of the keys have come to it: D sums, then maximum and weight.
  __device__ void store_partial(float* to, int h) const {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < D / 8; ++i) {
      *reinterpret_cast<float2*>(to + 8 * i + 2 * t) =
          make_float2(sums[i][2 * h], sums[i][2 * h + 1]);
    }
    if (t == 0) *reinterpret_cast<float2*>(to + D) = make_float2(max[h], weight[h]);
  }
};

// attention_prefill.cu, attention_decode.cu: enqueue for D = head_dim of 64, 80, 96, 128 or 256 and
// T = __half or __nv_bfloat16.
template <typename T>
void prefill_attention(const AttentionArgs<T>& args, int max_tiles, cudaStream_t stream);
// Puts the pieces of rows together, after either kernel.
template <typename T>
void combine_prefill(const AttentionArgs<T>& args, int max_tiles, cudaStream_t stream);
// attention_hopper.cu: the same, faster, where on_hopper(head_dim).
bool on_hopper(int head_dim);
template <typename T>
void prefill_attention_hopper(const AttentionArgs<T>& args, int max_tiles, cudaStream_t stream);
template <typename T>
void decode_attention(const AttentionArgs<T>& args, int num_sms, cudaStream_t stream);

// body.operator()<D>() for the head sizes of the tensor core kernels.
template <typename Body>
void dispatch_head_dim(int head_dim, const Body& body) {
  switch (head_dim) {
    case 64: return body.template operator()<64>();
    case 80: return body.template operator()<80>();
    case 96: return body.template operator()<96>();
    case 128: return body.template operator()<128>();
    case 256: return body.template operator()<256>();
    default: CHECK(false, "no tensor core attention for heads of {}", head_dim);
  }
}

}  // namespace millrace::cuda
