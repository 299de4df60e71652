// What every verb should give, in plain double arithmetic, and the random inputs of these tests.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "engine/core/device.h"
#include "engine/kernels/cpu/dispatch.h"
#include "engine/kernels/ops.h"

namespace millrace::reference {

inline constexpr DType kWeightTypes[] = {
    DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_1};

inline double half_value(const uint8_t* p) {
  const int bits = p[0] | p[1] << 8;
  const int exponent = bits >> 10 & 31;
  const double mantissa = bits & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

// Element k of a stored row.
inline double weight_value(const uint8_t* row, DType dtype, int64_t k) {
  const DTypeInfo info = dtype_info(dtype);
  const uint8_t* block = row + k / info.block_size * info.block_bytes;
  const auto i = static_cast<int>(k % info.block_size);
  const auto nibble = [&](const uint8_t* q) { return i < 16 ? q[i] & 15 : q[i - 16] >> 4; };
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
    case DType::kI32: break;
  }
  return NAN;
}

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  int64_t below(int64_t n) { return std::uniform_int_distribution<int64_t>(0, n - 1)(engine_); }
  float normal() { return std::normal_distribution<float>()(engine_); }
  void fill(const TensorView& t) {
    for (int64_t r = 0; r < t.rows(); ++r) {
      for (int64_t i = 0; i < t.count() / t.rows(); ++i) t.row_as<float>(r)[i] = normal();
    }
  }
  Tensor rows(int64_t n, int64_t cols) {
    Tensor t = device_->tensor(DType::kF32, {n, cols}, "test");
    fill(t.view);
    return t;
  }
  Tensor vector(int64_t n) {
    Tensor t = device_->tensor(DType::kF32, {n}, "test");
    for (int64_t i = 0; i < n; ++i) t.view.as<float>()[i] = normal();
    return t;
  }
  // Any stored bytes whose values lie within about 1: half exponents are kept low.
  Tensor weights(DType dtype, int64_t n, int64_t k) {
    Tensor t = device_->tensor(dtype, {n, k}, "test");
    const DTypeInfo info = dtype_info(dtype);
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t b = 0; b < k / info.block_size; ++b) {
        fill_block(t.view.row(r) + b * info.block_bytes, dtype, info.block_bytes);
      }
    }
    return t;
  }
  Device& device() { return *device_; }

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
      put_half(p, dtype == DType::kF16 ? 15 : 9);
      if (dtype == DType::kQ4_1) put_half(p + 2, 13);
    }
  }

  std::mt19937 engine_;
  std::unique_ptr<Device> device_ = make_cpu_device();
};

struct Dot {
  double value = 0;
  double magnitude = 0;  // of the terms: what rounding is measured against
};
inline Dot dot(const float* x, const TensorView& w, int64_t n) {
  Dot d;
  for (int64_t k = 0; k < w.cols(); ++k) {
    const double term = double{x[k]} * weight_value(w.row(n), w.dtype, k);
    d.value += term;
    d.magnitude += std::abs(term);
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

inline double silu_mul(double gate, double up) { return gate / (1 + std::exp(-gate)) * up; }

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

// A paged cache with its sequences: block ids dealt at random, every slot that no token owns NaN.
struct PagedBatch {
  std::vector<int32_t> cu_tokens{0};
  std::vector<int32_t> positions;
  std::vector<std::vector<uint32_t>> tables;
  std::vector<const uint32_t*> table_rows;
  BatchView view;
  Tensor k;
  Tensor v;
  KvCacheView cache() const { return {k.view, v.view}; }

  // Sequence s has lengths[s] keys, of which the last counts[s] are this step's tokens.
  PagedBatch(Random& random, const std::vector<int32_t>& lengths,
      const std::vector<int32_t>& counts, const AttentionShape& shape, int32_t block_size) {
    std::vector<uint32_t> ids;
    int32_t total = 1;
    for (const int32_t n : lengths) total += (n + block_size - 1) / block_size;
    for (int32_t i = 0; i < total; ++i) ids.push_back(static_cast<uint32_t>(i));
    for (size_t i = ids.size() - 1; i > 0; --i) {
      std::swap(ids[i], ids[static_cast<size_t>(random.below(static_cast<int64_t>(i) + 1))]);
    }
    for (Tensor* t : {&k, &v}) {
      *t = random.device().tensor(
          DType::kF32, {total, shape.num_kv_heads, block_size, shape.head_dim}, "cache");
      std::fill_n(t->view.as<float>(), t->view.count(), NAN);
    }
    for (size_t s = 0; s < lengths.size(); ++s) {
      tables.emplace_back();
      for (int32_t n = 0; n < lengths[s]; n += block_size) {
        tables.back().push_back(ids.back());
        ids.pop_back();
      }
      for (int32_t p = 0; p < lengths[s]; ++p) {
        for (int32_t h = 0; h < shape.num_kv_heads; ++h) {
          for (int32_t d = 0; d < shape.head_dim; ++d) {
            slot(k, s, h, p)[d] = random.normal();
            slot(v, s, h, p)[d] = random.normal();
          }
        }
      }
      for (int32_t p = lengths[s] - counts[s]; p < lengths[s]; ++p) positions.push_back(p);
      cu_tokens.push_back(static_cast<int32_t>(positions.size()));
    }
    for (const auto& table : tables) table_rows.push_back(table.data());
    view = {static_cast<int32_t>(positions.size()), block_size, cu_tokens, positions, table_rows};
  }
  PagedBatch(const PagedBatch&) = delete;
  float* slot(const Tensor& t, size_t s, int32_t head, int32_t p) const {
    const auto block_size = static_cast<int32_t>(t.view.shape[2]);
    const uint32_t block = tables[s][static_cast<size_t>(p / block_size)];
    return t.view.row_as<float>(block) + (head * block_size + p % block_size) * t.view.shape[3];
  }
};

// Attention of one row (sequence s, query head h, position p).
inline std::vector<double> attention(const PagedBatch& batch, const AttentionShape& shape,
    const float* q, size_t s, int32_t h, int32_t p) {
  const int32_t kv = h / (shape.num_heads / shape.num_kv_heads);
  const int32_t first = shape.window > 0 ? std::max(0, p - shape.window + 1) : 0;
  double total = 0;
  std::vector<double> out(static_cast<size_t>(shape.head_dim));
  for (int32_t j = first; j <= p; ++j) {
    double score = 0;
    for (int32_t d = 0; d < shape.head_dim; ++d) {
      score += double{q[d]} * batch.slot(batch.k, s, kv, j)[d];
    }
    const double e = std::exp(score * shape.scale);
    total += e;
    for (int32_t d = 0; d < shape.head_dim; ++d) {
      out[static_cast<size_t>(d)] += e * batch.slot(batch.v, s, kv, j)[d];
    }
  }
  for (double& value : out) value /= total;
  return out;
}

}  // namespace millrace::reference
