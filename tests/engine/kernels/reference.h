// What every verb should give, in plain double arithmetic on the host, and random inputs.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numbers>
#include <random>
#include <string>
#include <vector>

#include "engine/core/dtype.h"
#include "engine/kernels/ops.h"

namespace millrace::reference {

inline constexpr DType kWeightTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0,
    DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kIq4Nl, DType::kQ2K, DType::kQ3K,
    DType::kQ4K, DType::kQ5K, DType::kQ6K};

inline double half_value(const uint8_t* p) {
  const int bits = p[0] | p[1] << 8;
  const int exponent = bits >> 10 & 31;
  const double mantissa = bits & 1023;
  if (exponent == 31) return mantissa != 0 ? NAN : bits & 0x8000 ? -INFINITY : INFINITY;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

// Element i of a block of 256, type by type as dequantize_row_* of ggml-quants.c walks it.
inline double superblock_value(const uint8_t* b, DType dtype, int i) {
  const int n = i / 128, l = i % 32, quarter = i % 128 / 32, chunk = i / 64;
  if (dtype == DType::kQ2K) {
    const int scale = b[i / 16];
    const int q = b[16 + 32 * n + l] >> 2 * quarter & 3;
    return half_value(b + 80) * (scale & 15) * q - half_value(b + 82) * (scale >> 4);
  }
  if (dtype == DType::kQ3K) {
    const uint8_t* s = b + 96;
    const int j = i / 16;
    const int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
    const int high = s[8 + j % 4] >> 2 * (j / 4) & 3;
    const int q = (b[32 + 32 * n + l] >> 2 * quarter & 3) - ((b[l] >> (i / 32) & 1) != 0 ? 0 : 4);
    return half_value(b + 108) * ((low | high << 4) - 32) * q;
  }
  if (dtype == DType::kQ6K) {
    const int byte = b[64 * n + l + (quarter % 2 != 0 ? 32 : 0)];
    const int low = quarter < 2 ? byte & 15 : byte >> 4;
    const int high = b[128 + 32 * n + l] >> 2 * quarter & 3;
    return half_value(b + 208) * static_cast<int8_t>(b[192 + i / 16]) * ((low | high << 4) - 32);
  }
  const bool five = dtype == DType::kQ5K;
  const uint8_t* s = b + 4;
  const int j = i / 32;
  const int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
  const int minimum = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4;
  const int byte = b[(five ? 48 : 16) + 32 * chunk + l];
  const int fifth = five ? (b[16 + l] >> j & 1) * 16 : 0;
  const int q = (i % 64 < 32 ? byte & 15 : byte >> 4) + fifth;
  return half_value(b) * scale * q - half_value(b + 2) * minimum;
}

// Element k of a stored row.
inline double weight_value(const uint8_t* row, DType dtype, int64_t k) {
  const DTypeInfo info = dtype_info(dtype);
  const uint8_t* block = row + k / info.block_size * info.block_bytes;
  const auto i = static_cast<int>(k % info.block_size);
  const auto nibble = [&](const uint8_t* q) { return i < 16 ? q[i] & 15 : q[i - 16] >> 4; };
  const auto fifth = [&](const uint8_t* bits) { return (bits[i / 8] >> i % 8 & 1) * 16; };
  constexpr int kTable[] = {
      -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  switch (dtype) {
    case DType::kF32: {
      float f;
      std::memcpy(&f, block, 4);
      return double{f};
    }
    case DType::kF16: return half_value(block);
    case DType::kBF16: {
      const uint32_t bits = static_cast<uint32_t>(block[0] | block[1] << 8) << 16;
      float f;
      std::memcpy(&f, &bits, 4);
      return double{f};
    }
    case DType::kQ8_0: return half_value(block) * static_cast<int8_t>(block[2 + i]);
    case DType::kQ4_0: return half_value(block) * (nibble(block + 2) - 8);
    case DType::kQ4_1: return half_value(block) * nibble(block + 4) + half_value(block + 2);
    case DType::kQ5_0: return half_value(block) * ((nibble(block + 6) | fifth(block + 2)) - 16);
    case DType::kQ5_1:
      return half_value(block) * (nibble(block + 8) | fifth(block + 4)) + half_value(block + 2);
    case DType::kIq4Nl: return half_value(block) * kTable[nibble(block + 2)];
    case DType::kI32: return NAN;
    default: return superblock_value(block, dtype, i);
  }
  return NAN;
}

// Rounds to nearest even. dtype: kF32, kF16 or kBF16.
inline void store(float value, DType dtype, uint8_t* to) {
  const auto bits = std::bit_cast<uint32_t>(value);
  auto half = static_cast<uint32_t>(std::isnan(value) ? 0x7e00 : 0x7c00) | (bits >> 16 & 0x8000);
  if (dtype == DType::kBF16) {
    half = std::isnan(value) ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  } else if (std::isfinite(value)) {
    // In units of the last place of its exponent; what carries into the next one fits as it is.
    const int exponent = std::max(value == 0 ? -14 : std::ilogb(value), -14);
    const auto units = static_cast<int>(std::nearbyint(std::ldexp(std::abs(value), 10 - exponent)));
    const int magnitude = units < 1024 ? units : ((exponent + 15) << 10) + units - 1024;
    half = static_cast<uint32_t>(std::min(magnitude, 0x7c00)) | (bits >> 16 & 0x8000);
  }
  if (dtype == DType::kF32) {
    std::memcpy(to, &bits, 4);
  } else {
    std::memcpy(to, &half, 2);
  }
}
inline float rounded(float value, DType dtype) {
  if (dtype == DType::kF32) return value;
  uint8_t stored[256] = {};
  store(value, dtype, stored);
  return static_cast<float>(weight_value(stored, dtype, 0));
}

struct Matrix {
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<float> values;

  Matrix() = default;
  Matrix(int64_t num_rows, int64_t num_cols, float value = 0)
      : rows(num_rows), cols(num_cols), values(static_cast<size_t>(num_rows * num_cols), value) {}
  float* row(int64_t i) { return values.data() + i * cols; }
  const float* row(int64_t i) const { return values.data() + i * cols; }
};

// A matrix as a file holds it.
struct Weights {
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<uint8_t> bytes;

  const uint8_t* row(int64_t i) const { return bytes.data() + i * dtype_bytes(dtype, cols); }
  std::vector<double> values(int64_t i) const {
    std::vector<double> all;
    for (int64_t k = 0; k < cols; ++k) all.push_back(weight_value(row(i), dtype, k));
    return all;
  }
};

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  int64_t below(int64_t n) { return std::uniform_int_distribution<int64_t>(0, n - 1)(engine_); }
  float normal() { return std::normal_distribution<float>()(engine_); }
  Matrix matrix(int64_t rows, int64_t cols, DType dtype = DType::kF32) {
    Matrix m(rows, cols);
    for (float& value : m.values) value = rounded(normal(), dtype);
    return m;
  }
  // Any stored bytes whose values lie within about 1: half exponents are kept low.
  Weights weights(DType dtype, int64_t rows, int64_t cols) {
    const DTypeInfo info = dtype_info(dtype);
    Weights w{dtype, rows, cols, {}};
    w.bytes.resize(static_cast<size_t>(rows * dtype_bytes(dtype, cols)));
    for (size_t at = 0; at < w.bytes.size(); at += static_cast<size_t>(info.block_bytes)) {
      fill_block(w.bytes.data() + at, dtype, info.block_bytes);
    }
    return w;
  }

 private:
  void put_half(uint8_t* p, int max_exponent) {
    const auto bits =
        static_cast<uint16_t>(below(2) << 15 | below(max_exponent + 1) << 10 | below(1024));
    std::memcpy(p, &bits, 2);
  }
  void fill_block(uint8_t* p, DType dtype, int bytes) {
    for (int i = 0; i < bytes; ++i) p[i] = static_cast<uint8_t>(below(256));
    if (dtype == DType::kF32 || dtype == DType::kBF16) {
      const float f = normal();
      std::memcpy(
          p, reinterpret_cast<const uint8_t*>(&f) + (4 - bytes), static_cast<size_t>(bytes));
    } else {
      switch (dtype) {
        case DType::kF16: return put_half(p, 15);
        case DType::kQ2K: put_half(p + 80, 8); return put_half(p + 82, 9);
        case DType::kQ3K: return put_half(p + 108, 6);
        case DType::kQ4K:
        case DType::kQ5K: put_half(p, 5); return put_half(p + 2, 7);
        case DType::kQ6K: return put_half(p + 208, 2);
        default: put_half(p, 9);
      }
      if (dtype == DType::kQ4_1 || dtype == DType::kQ5_1) put_half(p + 2, 13);
    }
  }

  std::mt19937 engine_;
};

struct Dot {
  double value = 0;
  double magnitude = 0;  // of the terms: what rounding is measured against
  double sixteen = 0;  // the most that x in steps of 1/32767 of the largest of each 32 puts it off
};
inline Dot dot(const float* x, const std::vector<double>& w) {
  Dot d;
  float largest = 0;
  for (size_t k = 0; k < w.size(); ++k) {
    const double term = double{x[k]} * w[k];
    d.value += term;
    d.magnitude += std::abs(term);
    if (k % 32 == 0) {
      largest = 0;
      for (size_t i = k; i < std::min(k + 32, w.size()); ++i) {
        largest = std::max(largest, std::abs(x[i]));
      }
    }
    d.sixteen += largest / 65534 * std::abs(w[k]);
  }
  return d;
}

inline std::vector<double> rms_norm(const float* x, const float* weight, double eps, int64_t n) {
  double squares = 0;
  for (int64_t i = 0; i < n; ++i) squares += double{x[i]} * x[i];
  std::vector<double> out;
  for (int64_t i = 0; i < n; ++i) {
    out.push_back(x[i] / std::sqrt(squares / static_cast<double>(n) + eps) * weight[i]);
  }
  return out;
}

inline double gate_mul(Activation act, double gate, double up) {
  const double cubic = std::sqrt(2 / std::numbers::pi) * (gate + 0.044715 * gate * gate * gate);
  // (1 + tanh(z)) / 2, without its cancellation where z is far below 0.
  const double u = act == Activation::kSilu ? gate : 2 * cubic;
  return gate / (1 + std::exp(-u)) * up;
}

inline std::vector<double> rope(const float* x, const float* cos_sin, int dim, bool interleaved) {
  std::vector<double> out(static_cast<size_t>(dim));
  for (int i = 0; i < dim / 2; ++i) {
    const int a = interleaved ? 2 * i : i;
    const int b = interleaved ? 2 * i + 1 : i + dim / 2;
    const double c = cos_sin[i];
    const double s = cos_sin[i + dim / 2];
    out[static_cast<size_t>(a)] = x[a] * c - x[b] * s;
    out[static_cast<size_t>(b)] = x[b] * c + x[a] * s;
  }
  return out;
}

}  // namespace millrace::reference
