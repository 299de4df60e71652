// Four floats in the compiler's own vector type, for any processor: the level named "scalar".
// Included only by kernels_portable.cc. The verbs are documented in vec_avx512.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace millrace {
namespace {

constexpr const char* kLevelName = "scalar";
constexpr int kWidth = 4;
constexpr int kTileRows = 3;
constexpr int kBlockRows = 4;
constexpr int kValueRows = 2;

using Float4 = float __attribute__((vector_size(16)));
using Int4 = int32_t __attribute__((vector_size(16)));
struct Vec {
  Float4 v;
};

inline Vec vec_set(float x) { return {Float4{x, x, x, x}}; }
inline Vec vec_load_n(const float* p, int n) {
  Vec a = vec_set(0);
  std::memcpy(&a, p, static_cast<size_t>(n) * sizeof(float));
  return a;
}
inline void vec_store_n(float* p, Vec a, int n) {
  std::memcpy(p, &a, static_cast<size_t>(n) * sizeof(float));
}
inline Vec vec_load(const float* p) { return vec_load_n(p, kWidth); }
inline void vec_store(float* p, Vec a) { vec_store_n(p, a, kWidth); }
inline Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
inline Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
inline Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
inline Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
inline Vec vec_fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
inline Vec vec_min(Vec a, Vec b) { return {a.v < b.v ? a.v : b.v}; }
inline Vec vec_max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
// For |a| < 2^22: adding 1.5 * 2^23 leaves no room for a fraction.
inline Vec vec_round(Vec a) {
  const Vec big = vec_set(12582912.0f);
  return (a + big) - big;
}
inline Vec vec_exp2_whole(Vec n) {
  const Int4 biased = __builtin_convertvector(n.v, Int4) + 127;
  const Int4 bits = biased << 23;
  Vec r;
  std::memcpy(&r, &bits, sizeof(r));
  return r;
}
inline Vec vec_zero_below(Vec x, float bound, Vec a) {
  return {x.v < vec_set(bound).v ? vec_set(0).v : a.v};
}
inline float vec_max_of(Vec a) {
  const float ab = a.v[0] > a.v[1] ? a.v[0] : a.v[1];
  const float cd = a.v[2] > a.v[3] ? a.v[2] : a.v[3];
  return ab > cd ? ab : cd;
}
inline Vec vec_sums(const Vec* v) {
  Vec r;
  for (int i = 0; i < 4; ++i) r.v[i] = (v[i].v[0] + v[i].v[1]) + (v[i].v[2] + v[i].v[3]);
  return r;
}
inline void vec_sums4(const Vec* v, float* out) { vec_store(out, vec_sums(v)); }

inline float half_to_float(const uint8_t* p) {
  uint16_t half;
  std::memcpy(&half, p, 2);
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7fff;
  uint32_t bits;
  if (magnitude >= 0x7c00) {  // infinity, NaN
    bits = (magnitude << 13) | 0x7f800000;
  } else if (magnitude >= 0x0400) {
    bits = (magnitude << 13) + (112u << 23);
  } else {  // zero, subnormal: an exact multiple of 2^-24
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    std::memcpy(&bits, &value, 4);
  }
  bits |= sign;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline Vec vec_load_f16(const uint8_t* p) {
  return {
      Float4{half_to_float(p), half_to_float(p + 2), half_to_float(p + 4), half_to_float(p + 6)}};
}
inline Vec vec_load_bf16(const uint8_t* p) {
  uint16_t raw[4];
  std::memcpy(raw, p, sizeof(raw));
  const uint32_t bits[4] = {static_cast<uint32_t>(raw[0]) << 16,
      static_cast<uint32_t>(raw[1]) << 16, static_cast<uint32_t>(raw[2]) << 16,
      static_cast<uint32_t>(raw[3]) << 16};
  Vec r;
  std::memcpy(&r, bits, sizeof(r));
  return r;
}
inline Vec vec_load_i8(const uint8_t* p) {
  int8_t q[4];
  std::memcpy(q, p, sizeof(q));
  return {__builtin_convertvector((Int4{q[0], q[1], q[2], q[3]}), Float4)};
}
inline void vec_store_i16(int16_t* p, Vec a) {
  for (int i = 0; i < 4; ++i) p[i] = static_cast<int16_t>(a.v[i]);
}

using Words128 = uint16_t __attribute__((vector_size(16)));
inline Int4 add_pairs(Int4 sum, Words128 a, Int4 b) {
  const auto words = reinterpret_cast<Int4>(a);
  return sum + (words << 16 >> 16) * (b << 16 >> 16) + (words >> 16) * (b >> 16);
}
inline Words128 lookup_words(Words128 codes, const int* table) {
  Words128 low, high;
  for (int i = 0; i < 8; ++i) {
    low[i] = static_cast<uint16_t>(table[i]);
    high[i] = static_cast<uint16_t>(table[8 + i]);
  }
  return __builtin_shuffle(low, high, codes);
}

}  // namespace
}  // namespace millrace
