// Matrix products over plain weights as they are stored. Each output has one vector accumulator:
// lane l adds the products of k = l, l + W, l + 2W, ... in that order, and the lanes are summed by
// one fixed tree. Nothing else enters an output, so its bits do not depend on tile, range or path.
#pragma once

namespace millrace {
namespace {

constexpr int kTileOutputs = 4;

// How kWidth weights of each stored type become a vector.
struct WeightF32 {
  static constexpr int kBytes = 4;
  static Vec load(const uint8_t* p) { return vec_load(reinterpret_cast<const float*>(p)); }
};
struct WeightF16 {
  static constexpr int kBytes = 2;
  static Vec load(const uint8_t* p) { return vec_load_f16(p); }
};
struct WeightBF16 {
  static constexpr int kBytes = 2;
  static Vec load(const uint8_t* p) { return vec_load_bf16(p); }
};
// The first n <= kWidth of them, then zeros.
template <typename Weight>
inline Vec load_weights(const uint8_t* p, int n) {
  if (n == kWidth) return Weight::load(p);
  uint8_t padded[kWidth * Weight::kBytes] = {};
  std::memcpy(padded, p, static_cast<size_t>(n) * Weight::kBytes);
  return Weight::load(padded);
}

// Sums one row's accumulators into outputs n0 .. n0 + 3, those below n_end.
inline void store_outputs(const LinearArgs& a, const Vec* acc, int64_t m, int64_t n0) {
  float sums[kTileOutputs];
  vec_sums4(acc, sums);
  float* out = a.out + m * a.out_stride;
  for (int64_t n = n0; n < min_of(n0 + kTileOutputs, a.n_end); ++n) {
    out[n] = a.bias != nullptr ? sums[n - n0] + a.bias[n] : sums[n - n0];
  }
}

// `rows` <= kRows rows from m0 on times four outputs.
template <typename Weight, int kRows>
inline void linear_tile(const LinearArgs& a, int64_t rows, int64_t m0, int64_t n0) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return linear_tile<Weight, kRows - 1>(a, rows, m0, n0);
  }
  const uint8_t* w[kTileOutputs];
  for (int n = 0; n < kTileOutputs; ++n) w[n] = a.w + min_of(n0 + n, a.n_end - 1) * a.w_stride;
  // The processor follows long streams by itself, not four short ones (twice the speed from memory
  // at K = 1536). A panel is in the cache.
  constexpr bool kFromMemory = kRows <= kStreamRows;
  const int64_t next_tile = kTileOutputs * a.w_stride;
  const float* x = a.x + m0 * a.x_stride;
  Vec acc[kRows][kTileOutputs] = {};
  for_vecs(a.k, [&](int64_t k, int part) {
    Vec weights[kTileOutputs];
#pragma GCC unroll 4
    for (int n = 0; n < kTileOutputs; ++n) {
      const uint8_t* p = w[n] + k * Weight::kBytes;
      weights[n] = load_weights<Weight>(p, part);
      if (kFromMemory) __builtin_prefetch(p + next_tile);
    }
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const Vec xv = load_part(x + m * a.x_stride + k, part);
#pragma GCC unroll 4
      for (int n = 0; n < kTileOutputs; ++n) acc[m][n] = vec_fma(weights[n], xv, acc[m][n]);
    }
  });
  for (int m = 0; m < kRows; ++m) store_outputs(a, acc[m], m0 + m, n0);
}

// A tile's rows stay in the first cache while the weights pass by.
template <typename Weight, int kRows>
void linear_tiles(const LinearArgs& a) {
  for (int64_t m = 0; m < a.rows; m += kRows) {
    for (int64_t n = a.n_begin; n < a.n_end; n += kTileOutputs) {
      linear_tile<Weight, kRows>(a, min_of(kRows, a.rows - m), m, n);
    }
  }
}

template <typename Weight>
void widen_as(const uint8_t* row, int64_t n, float* out) {
  for_vecs(n, [&](int64_t i, int part) {
    store_part(out + i, load_weights<Weight>(row + i * Weight::kBytes, part), part);
  });
}

template <typename Weight>
void linear_as(const LinearArgs& a) {
  if (a.rows <= kStreamRows) return linear_tiles<Weight, kStreamRows>(a);
  LinearArgs panel = a;
  panel.w = reinterpret_cast<const uint8_t*>(a.panel);
  panel.w_stride = panel_stride(a.k) * 4;
  panel.n_begin = 0;
  panel.n_end = a.n_end - a.n_begin;
  panel.out += a.n_begin;
  if (a.bias != nullptr) panel.bias += a.n_begin;
  for (int64_t n = 0; n < panel.n_end; ++n) {
    widen_as<Weight>(a.w + (a.n_begin + n) * a.w_stride, a.k, a.panel + n * panel_stride(a.k));
  }
  linear_tiles<WeightF32, kTileRows>(panel);
}

void linear(const LinearArgs& a) {
  switch (a.w_dtype) {
    case DType::kF32: return linear_as<WeightF32>(a);
    case DType::kF16: return linear_as<WeightF16>(a);
    case DType::kBF16: return linear_as<WeightBF16>(a);
    default: return;  // quantized: block_linear
  }
}

void widen(const uint8_t* row, DType dtype, int64_t n, float* out) {
  switch (dtype) {
    case DType::kF32: return widen_as<WeightF32>(row, n, out);
    case DType::kF16: return widen_as<WeightF16>(row, n, out);
    case DType::kBF16: return widen_as<WeightBF16>(row, n, out);
    default: return;  // quantized: widen_blocks
  }
}

}  // namespace
}  // namespace millrace
