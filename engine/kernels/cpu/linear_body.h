// Matrix products over plain weights as they are stored. Each output has one vector accumulator:
// lane l adds the products of k = l, l + W, l + 2W, ... in that order, and the lanes are summed by
// one fixed tree. Nothing else enters an output, so its bits do not depend on tile, range or path.
#pragma once

namespace millrace {
namespace {

constexpr int kStepVecs = kUnpackStep / kWidth;
constexpr int kTileOutputs = 4;

// How kUnpackStep weights of each stored type become vectors.
struct WeightF32 {
  static constexpr int kBytes = 128;
  static void unpack(const uint8_t* p, Vec* out) {
    for (int i = 0; i < kStepVecs; ++i) {
      out[i] = vec_load(reinterpret_cast<const float*>(p) + i * kWidth);
    }
  }
};
struct WeightF16 {
  static constexpr int kBytes = 64;
  static void unpack(const uint8_t* p, Vec* out) {
    for (int i = 0; i < kStepVecs; ++i) out[i] = vec_load_f16(p + i * kWidth * 2);
  }
};
struct WeightBF16 {
  static constexpr int kBytes = 64;
  static void unpack(const uint8_t* p, Vec* out) {
    for (int i = 0; i < kStepVecs; ++i) out[i] = vec_load_bf16(p + i * kWidth * 2);
  }
};
// The last `n` < kUnpackStep weights of a plain type, then zeros.
template <typename Weight>
inline void unpack_tail(const uint8_t* p, int64_t n, Vec* out) {
  uint8_t padded[Weight::kBytes] = {};
  std::memcpy(padded, p, static_cast<size_t>(n * (Weight::kBytes / kUnpackStep)));
  Weight::unpack(padded, out);
}

// Elements [offset, offset + W) of a tail of n, zeros beyond.
inline Vec load_tail(const float* p, int64_t offset, int64_t n) {
  return vec_load_n(p + offset, static_cast<int>(min_of(kWidth, max_of(n - offset, 0))));
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

// kRows rows times four outputs, the weights unpacked in registers.
template <typename Weight, int kRows>
inline void stream_tile(const LinearArgs& a, int64_t n0) {
  const uint8_t* w[kTileOutputs];
  for (int n = 0; n < kTileOutputs; ++n) w[n] = a.w + min_of(n0 + n, a.n_end - 1) * a.w_stride;
  Vec acc[kRows][kTileOutputs];
  for (auto& row : acc) {
    for (Vec& v : row) v = vec_set(0);
  }
  // The processor follows long streams by itself, not four short ones (twice the speed from memory
  // at K = 1536).
  const int64_t next_tile = kTileOutputs * a.w_stride;
  const int64_t steps = a.k / kUnpackStep;
  for (int64_t s = 0; s < steps; ++s) {
    const float* x = a.x + s * kUnpackStep;
#pragma GCC unroll 4
    for (int n = 0; n < kTileOutputs; ++n) {
      Vec weights[kStepVecs];
      Weight::unpack(w[n] + s * Weight::kBytes, weights);
      __builtin_prefetch(w[n] + next_tile + s * Weight::kBytes);
#pragma GCC unroll 8
      for (int i = 0; i < kStepVecs; ++i) {
#pragma GCC unroll 4
        for (int m = 0; m < kRows; ++m) {
          acc[m][n] = vec_fma(weights[i], vec_load(x + m * a.x_stride + i * kWidth), acc[m][n]);
        }
      }
    }
  }
  if (const int64_t left = a.k - steps * kUnpackStep; left > 0) {
    for (int n = 0; n < kTileOutputs; ++n) {
      Vec weights[kStepVecs];
      unpack_tail<Weight>(w[n] + steps * Weight::kBytes, left, weights);
      for (int i = 0; i < kStepVecs; ++i) {
        for (int m = 0; m < kRows; ++m) {
          const float* x = a.x + m * a.x_stride + steps * kUnpackStep;
          acc[m][n] = vec_fma(weights[i], load_tail(x, i * kWidth, left), acc[m][n]);
        }
      }
    }
  }
  for (int m = 0; m < kRows; ++m) store_outputs(a, acc[m], m, n0);
}

// kRows rows from m0 on times four outputs from the panel's four rows at `w`.
template <int kRows>
inline void panel_tile(const LinearArgs& a, const float* w, int64_t m0, int64_t n0) {
  const int64_t stride = padded_k(a.k);
  const float* x = a.x + m0 * a.x_stride;
  Vec acc[kRows][kTileOutputs];
  for (auto& row : acc) {
    for (Vec& v : row) v = vec_set(0);
  }
  const int64_t whole = a.k / kUnpackStep * kUnpackStep;
  for (int64_t k = 0; k < whole; k += kWidth) {
    Vec weights[kTileOutputs];
#pragma GCC unroll 4
    for (int n = 0; n < kTileOutputs; ++n) weights[n] = vec_load(w + n * stride + k);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const Vec xv = vec_load(x + m * a.x_stride + k);
#pragma GCC unroll 4
      for (int n = 0; n < kTileOutputs; ++n) acc[m][n] = vec_fma(weights[n], xv, acc[m][n]);
    }
  }
  for (int64_t k = whole; k < stride; k += kWidth) {
    for (int m = 0; m < kRows; ++m) {
      const Vec xv = load_tail(x + m * a.x_stride + whole, k - whole, a.k - whole);
      for (int n = 0; n < kTileOutputs; ++n) {
        acc[m][n] = vec_fma(vec_load(w + n * stride + k), xv, acc[m][n]);
      }
    }
  }
  for (int m = 0; m < kRows; ++m) store_outputs(a, acc[m], m0 + m, n0);
}

template <typename Weight>
void widen_as(const uint8_t* row, int64_t n, float* out) {
  Vec weights[kStepVecs];
  const int64_t steps = n / kUnpackStep;
  for (int64_t s = 0; s < steps; ++s) {
    Weight::unpack(row + s * Weight::kBytes, weights);
    for (int i = 0; i < kStepVecs; ++i) vec_store(out + s * kUnpackStep + i * kWidth, weights[i]);
  }
  if (const int64_t left = n - steps * kUnpackStep; left > 0) {
    unpack_tail<Weight>(row + steps * Weight::kBytes, left, weights);
    for (int64_t i = 0; i * kWidth < left; ++i) {
      vec_store_n(out + steps * kUnpackStep + i * kWidth, weights[i],
          static_cast<int>(min_of(kWidth, left - i * kWidth)));
    }
  }
}

template <typename Weight>
void linear_panel(const LinearArgs& a) {
  const int64_t stride = padded_k(a.k);
  for (int64_t n = a.n_begin; n < a.n_begin + (a.n_end - a.n_begin + 3) / 4 * 4; ++n) {
    float* row = a.panel + (n - a.n_begin) * stride;
    widen_as<Weight>(a.w + min_of(n, a.n_end - 1) * a.w_stride, a.k, row);
    for (int64_t k = a.k; k < stride; ++k) row[k] = 0;
  }
  // A tile's rows stay in the first cache while the panel passes by from the second.
  for (int64_t m = 0; m < a.rows; m += kTileRows) {
    for (int64_t n = a.n_begin; n < a.n_end; n += kTileOutputs) {
      const float* w = a.panel + (n - a.n_begin) * stride;
      switch (min_of(kTileRows, a.rows - m)) {
        case 1: panel_tile<1>(a, w, m, n); break;
        case 2: panel_tile<2>(a, w, m, n); break;
        case 3: panel_tile<3>(a, w, m, n); break;
        case 4: panel_tile<(kTileRows < 4 ? 1 : 4)>(a, w, m, n); break;
        case 5: panel_tile<(kTileRows < 5 ? 1 : 5)>(a, w, m, n); break;
        default: panel_tile<kTileRows>(a, w, m, n);
      }
    }
  }
}

template <typename Weight, int kRows>
void linear_stream(const LinearArgs& a) {
  for (int64_t n = a.n_begin; n < a.n_end; n += kTileOutputs) stream_tile<Weight, kRows>(a, n);
}

template <typename Weight>
void linear_as(const LinearArgs& a) {
  static_assert(kStreamRows == 4);
  switch (a.rows) {
    case 0: return;
    case 1: return linear_stream<Weight, 1>(a);
    case 2: return linear_stream<Weight, 2>(a);
    case 3: return linear_stream<Weight, 3>(a);
    case 4: return linear_stream<Weight, 4>(a);
    default: return linear_panel<Weight>(a);
  }
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
