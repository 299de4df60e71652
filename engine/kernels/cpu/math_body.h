// Vector arithmetic over whichever Vec the including kernels_*.cc chose.
#pragma once

#include <cstring>

namespace millrace {
namespace {

inline Vec vec_set(float x) { return x - Vec{}; }
inline Vec vec_load(const float* p) {
  Vec a;
  std::memcpy(&a, p, sizeof(a));
  return a;
}
inline void vec_store(float* p, Vec a) { std::memcpy(p, &a, sizeof(a)); }

// 2^n of whole n in [-126, 127].
inline Vec vec_exp2_whole(Vec n) {
  return reinterpret_cast<Vec>((__builtin_convertvector(n, Sums) + 127) << 23);
}

// e^x to about 1e-7 relative for x in [-87.3, 88]; 0 below, e^88 above, NaN of NaN. Cody and Waite
// reduction to |r| <= ln(2)/2 and the Taylor polynomial of degree 7 (truncation 5e-9).
inline Vec vec_exp(Vec x) {
  constexpr float kLowest = -87.3f;
  const Vec clamped = vec_max(vec_set(kLowest), vec_min(vec_set(88.0f), x));
  const Vec n = vec_round(clamped * vec_set(1.44269504f));
  Vec r = vec_fma(n, vec_set(-0.693359375f), clamped);  // 9 bits: the product is exact
  r = vec_fma(n, vec_set(2.12194440e-4f), r);
  Vec p = vec_set(1.0f / 5040);
  p = vec_fma(p, r, vec_set(1.0f / 720));
  p = vec_fma(p, r, vec_set(1.0f / 120));
  p = vec_fma(p, r, vec_set(1.0f / 24));
  p = vec_fma(p, r, vec_set(1.0f / 6));
  p = vec_fma(p, r, vec_set(0.5f));
  p = vec_fma(p, r, vec_set(1.0f));
  p = vec_fma(p, r, vec_set(1.0f));
  return x < kLowest ? Vec{} : p * vec_exp2_whole(n);
}

// To about 1e-7, absolute.
inline Vec vec_tanh(Vec x) { return 1.0f - 2.0f / (1.0f + vec_exp(x + x)); }

inline float vec_sum_of(Vec a) {
  const Vec four[4] = {a};
  float sums[4];
  vec_sums4(four, sums);
  return sums[0];
}

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

// Calls body(offset, count) over [0, n) by kWidth, the last call with what is left.
template <typename Body>
inline void for_vecs(int64_t n, Body body) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) body(i, kWidth);
  if (i < n) body(i, static_cast<int>(n - i));
}
inline Vec load_part(const float* p, int n) { return n == kWidth ? vec_load(p) : vec_load_n(p, n); }
inline void store_part(float* p, Vec a, int n) {
  n == kWidth ? vec_store(p, a) : vec_store_n(p, a, n);
}

}  // namespace
}  // namespace millrace
