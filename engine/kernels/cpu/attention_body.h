// Attention with an online softmax over kKeyChunk keys at a time, counted from position 0. What a
// row (token, head) computes depends on its query, its keys and its position alone: rows share the
// cached K and V of a chunk, never a sum.
#pragma once

namespace millrace {
namespace {

// Running state of the rows of one call, all in the caller's scratch.
struct SoftmaxState {
  float* max;      // [rows] largest score so far
  float* sum;      // [rows, 16] of exp(score - max), by lane
  float* acc;      // [rows, D] of exp(score - max) * v
  float* weight;   // [rows, kKeyChunk] exp(score - max) of the current chunk
  float* rescale;  // [rows] what the current chunk does to sum and acc
};

// A chunk of keys where they lie: pieces of `size` keys in one block each.
struct KeyChunk {
  const float* k[2];
  const float* v[2];
  int32_t size;  // 16 or 32
};

// Element i = q · k[i], i < kWidth.
inline Vec dot_keys(const float* q, const float* k, int32_t dim) {
  Vec acc[kWidth] = {};
  int32_t d = 0;
  for (; d + kWidth <= dim; d += kWidth) {
    const Vec qv = vec_load(q + d);
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) acc[i] = vec_fma(qv, vec_load(k + i * dim + d), acc[i]);
  }
  if (d < dim) {
    const Vec qv = vec_load_n(q + d, dim - d);
    for (int i = 0; i < kWidth; ++i) {
      acc[i] = vec_fma(qv, vec_load_n(k + i * dim + d, dim - d), acc[i]);
    }
  }
  return vec_sums(acc);
}

// Scores of keys [begin, end) of the chunk, then the row's softmax moves on by them.
inline void score_row(const AttentionArgs& a, const KeyChunk& chunk, const float* q, int32_t begin,
    int32_t end, const SoftmaxState& state, int64_t row) {
  float* weight = state.weight + row * kKeyChunk;
  const int32_t first = begin / kWidth * kWidth;
  for (int32_t j = first; j < end; j += kWidth) {
    const float* k = chunk.k[j / chunk.size] + j % chunk.size * a.head_dim;
    Vec score = dot_keys(q, k, a.head_dim) * vec_set(a.scale);
    if (a.softcap > 0) score = vec_tanh(score * vec_set(1 / a.softcap)) * vec_set(a.softcap);
    vec_store(weight + j, score);
  }
  // Slots beyond the row's keys hold whatever their last owner left there.
  for (int32_t j = first; j < begin; ++j) weight[j] = -__builtin_inff();
  for (int32_t j = end; j % kWidth != 0; ++j) weight[j] = -__builtin_inff();
  Vec largest = vec_set(state.max[row]);
  for (int32_t j = first; j < end; j += kWidth) largest = vec_max(largest, vec_load(weight + j));
  const float max = vec_max_of(largest);
  const Vec rescale = vec_exp(vec_set(state.max[row]) - vec_set(max));
  Vec sum = vec_load(state.sum + row * 16) * rescale;
  for (int32_t j = first; j < end; j += kWidth) {
    const Vec e = vec_exp(vec_load(weight + j) - vec_set(max));
    vec_store(weight + j, e);
    sum = sum + e;
  }
  vec_store(state.sum + row * 16, sum);
  vec_store_n(state.rescale + row, rescale, 1);
  state.max[row] = max;
}

// acc[row .. row + kRows) of kVecs vectors from dimension d on; `part` < kWidth for a last piece.
template <int kRows, int kVecs>
inline void add_values_at(const AttentionArgs& a, const KeyChunk& chunk, int32_t begin, int32_t end,
    const SoftmaxState& state, int64_t row, int32_t d, int part) {
  Vec acc[kRows][kVecs];
  float* to = state.acc + row * a.head_dim + d;
  const float* weight = state.weight + row * kKeyChunk;
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < kVecs; ++i) {
      acc[r][i] =
          load_part(to + r * a.head_dim + i * kWidth, part) * vec_set(state.rescale[row + r]);
    }
  }
  for (int32_t piece = begin / chunk.size; piece * chunk.size < end; ++piece) {
    const int32_t base = piece * chunk.size;
    const int32_t stop = static_cast<int32_t>(min_of(end, base + chunk.size));
    for (int32_t j = static_cast<int32_t>(max_of(begin, base)); j < stop; ++j) {
      const float* v = chunk.v[piece] + (j - base) * a.head_dim + d;
      Vec values[kVecs];
#pragma GCC unroll 4
      for (int i = 0; i < kVecs; ++i) values[i] = load_part(v + i * kWidth, part);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const Vec p = vec_set(weight[r * kKeyChunk + j]);
#pragma GCC unroll 4
        for (int i = 0; i < kVecs; ++i) acc[r][i] = vec_fma(p, values[i], acc[r][i]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < kVecs; ++i) store_part(to + r * a.head_dim + i * kWidth, acc[r][i], part);
  }
}

template <int kRows>
inline void add_values(const AttentionArgs& a, const KeyChunk& chunk, int32_t begin, int32_t end,
    const SoftmaxState& state, int64_t row, int32_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return add_values<kRows - 1>(a, chunk, begin, end, state, row, rows);
  }
  int32_t d = 0;
  for (; d + 4 * kWidth <= a.head_dim; d += 4 * kWidth) {
    add_values_at<kRows, 4>(a, chunk, begin, end, state, row, d, kWidth);
  }
  for (; d + kWidth <= a.head_dim; d += kWidth) {
    add_values_at<kRows, 1>(a, chunk, begin, end, state, row, d, kWidth);
  }
  if (d < a.head_dim) {
    add_values_at<kRows, 1>(a, chunk, begin, end, state, row, d, a.head_dim - d);
  }
}

// All heads of token t over its keys in the chunk that begins at `base`.
inline void attend_chunk(const AttentionArgs& a, const KeyChunk& chunk, int32_t base, int32_t t,
    const SoftmaxState& state) {
  const int32_t position = a.positions[t];
  const int32_t oldest = a.window > 0 && position >= a.window ? position - a.window + 1 : 0;
  const auto begin = static_cast<int32_t>(max_of(oldest - base, 0));
  const auto end = static_cast<int32_t>(min_of(position + 1 - base, kKeyChunk));
  if (begin >= end) return;
  const int64_t row = static_cast<int64_t>(t) * a.heads;
  for (int32_t h = 0; h < a.heads; ++h) {
    const float* q = a.q + t * a.q_stride + h * a.head_dim;
    score_row(a, chunk, q, begin, end, state, row + h);
  }
  for (int32_t h = 0; h < a.heads; h += kValueRows) {
    add_values<kValueRows>(a, chunk, begin, end, state, row + h, a.heads - h);
  }
}

inline SoftmaxState start_state(const AttentionArgs& a) {
  const int64_t rows = static_cast<int64_t>(a.tokens) * a.heads;
  SoftmaxState state;
  state.max = a.scratch;
  state.sum = state.max + rows;
  state.acc = state.sum + rows * 16;
  state.weight = state.acc + rows * a.head_dim;
  state.rescale = state.weight + rows * kKeyChunk;
  for (int64_t r = 0; r < rows; ++r) state.max[r] = -3.0e38f;  // finite: no infinity less infinity
  for (float* p = state.sum; p < state.weight; ++p) *p = 0;
  return state;
}

void attention(const AttentionArgs& a) {
  const SoftmaxState state = start_state(a);
  const int32_t last = a.positions[a.tokens - 1];
  const int32_t first = a.positions[0];
  const int32_t oldest = a.window > 0 && first >= a.window ? first - a.window + 1 : 0;
  KeyChunk chunk;
  chunk.size = static_cast<int32_t>(min_of(a.block_size, kKeyChunk));
  for (int32_t base = oldest / kKeyChunk * kKeyChunk; base <= last; base += kKeyChunk) {
    for (int32_t key = base; key < base + kKeyChunk && key <= last; key += chunk.size) {
      const int64_t offset = a.block_table[key / a.block_size] * a.block_stride +
                             static_cast<int64_t>(key % a.block_size) * a.head_dim;
      chunk.k[(key - base) / chunk.size] = a.k + offset;
      chunk.v[(key - base) / chunk.size] = a.v + offset;
    }
    for (int32_t t = 0; t < a.tokens; ++t) attend_chunk(a, chunk, base, t, state);
  }
  for (int32_t t = 0; t < a.tokens; ++t) {
    for (int32_t h = 0; h < a.heads; ++h) {
      const int64_t row = static_cast<int64_t>(t) * a.heads + h;
      const Vec factor = vec_set(1.0f / vec_sum_of(vec_load(state.sum + row * 16)));
      float* out = a.out + t * a.out_stride + h * a.head_dim;
      for_vecs(a.head_dim, [&](int64_t d, int part) {
        store_part(out + d, load_part(state.acc + row * a.head_dim + d, part) * factor, part);
      });
    }
  }
}

}  // namespace
}  // namespace millrace
