// Four floats in the compiler's own vector type, for any processor: the level named "scalar".
// Included only by kernels_portable.cc. The verbs are documented in vec_avx512.h.
#pragma once

#include <cstdint>
#include <cstring>

namespace millrace {
namespace {

constexpr const char* kLevelName = "scalar";
constexpr int kWidth = 4;
constexpr int kTileRows = 3;
constexpr int kBlockRows = 4;
constexpr int kValueRows = 2;

using Vec = float __attribute__((vector_size(16)));
using Sums = int32_t __attribute__((vector_size(16)));
using Words = uint16_t __attribute__((vector_size(16)));

inline Vec vec_load_n(const float* p, int n) {
  Vec a{};
  std::memcpy(&a, p, static_cast<size_t>(n) * sizeof(float));
  return a;
}
inline void vec_store_n(float* p, Vec a, int n) {
  std::memcpy(p, &a, static_cast<size_t>(n) * sizeof(float));
}
inline Vec vec_fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec vec_min(Vec a, Vec b) { return a < b ? a : b; }
inline Vec vec_max(Vec a, Vec b) { return a > b ? a : b; }
// For |a| < 2^22: adding 1.5 * 2^23 leaves no room for a fraction.
inline Vec vec_round(Vec a) { return (a + 12582912.0f) - 12582912.0f; }
inline float vec_max_of(Vec a) {
  const float ab = a[0] > a[1] ? a[0] : a[1];
  const float cd = a[2] > a[3] ? a[2] : a[3];
  return ab > cd ? ab : cd;
}
inline Vec vec_sums(const Vec* v) {
  Vec r;
  for (int i = 0; i < 4; ++i) r[i] = (v[i][0] + v[i][1]) + (v[i][2] + v[i][3]);
  return r;
}
inline void vec_sums4(const Vec* v, float* out) { vec_store_n(out, vec_sums(v), 4); }

// Four elements of a stored type as integers.
template <typename T>
inline Sums load_as_sums(const uint8_t* p) {
  T stored[4];
  std::memcpy(stored, p, sizeof(stored));
  return Sums{stored[0], stored[1], stored[2], stored[3]};
}
// The exponent's bias differs by 112; a half's subnormals become exact multiples of 2^-24 with it.
inline Vec vec_load_f16(const uint8_t* p) {
  const Sums bits = load_as_sums<uint16_t>(p);
  const Sums magnitude = (bits & 0x7fff) << 13;
  const Sums finite = reinterpret_cast<Sums>(reinterpret_cast<Vec>(magnitude) * 0x1p112f);
  const Sums value = magnitude < (0x7c00 << 13) ? finite : magnitude | 0x7f800000;
  return reinterpret_cast<Vec>(value | (bits & 0x8000) << 16);
}
inline Vec vec_load_bf16(const uint8_t* p) {
  return reinterpret_cast<Vec>(load_as_sums<uint16_t>(p) << 16);
}
inline Vec vec_load_i8(const uint8_t* p) {
  return __builtin_convertvector(load_as_sums<int8_t>(p), Vec);
}
inline void vec_store_i16(int16_t* p, Vec a) {
  for (int i = 0; i < 4; ++i) p[i] = static_cast<int16_t>(a[i]);
}

inline Sums add_pairs(Sums sum, Words a, Sums b) {
  const auto words = reinterpret_cast<Sums>(a);
  return sum + (words << 16 >> 16) * (b << 16 >> 16) + (words >> 16) * (b >> 16);
}

}  // namespace
}  // namespace millrace
