// Eight floats in an AVX2 register (with FMA and F16C). Included only by kernels_avx2.cc, which is
// compiled with those instructions: everything here is unnamed, so that no other file can link a
// function of this one. The verbs are documented in vec_avx512.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace millrace {
namespace {

constexpr const char* kLevelName = "avx2";
constexpr int kWidth = 8;
constexpr int kTileRows = 3;  // x 4 outputs = 12 accumulators of 16 registers
constexpr int kBlockRows = 4;
constexpr int kValueRows = 2;  // heads that share a load of V: 2 x 4 accumulators

using Vec = __m256;
using Sums = int32_t __attribute__((vector_size(32)));
using Words = uint16_t __attribute__((vector_size(32)));

inline __m256i first_n(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec vec_load_n(const float* p, int n) { return _mm256_maskload_ps(p, first_n(n)); }
inline void vec_store_n(float* p, Vec a, int n) { _mm256_maskstore_ps(p, first_n(n), a); }
inline Vec vec_fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec vec_min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec vec_max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec vec_round(Vec a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline float vec_max_of(Vec a) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

// Per 128-bit lane the sums of a, b, c and d.
inline __m256 lane_sums(Vec a, Vec b, Vec c, Vec d) {
  return _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
}
inline void vec_sums4(const Vec* v, float* out) {
  const __m256 s = lane_sums(v[0], v[1], v[2], v[3]);
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}
inline Vec vec_sums(const Vec* v) {
  const __m256 a = lane_sums(v[0], v[1], v[2], v[3]);
  const __m256 b = lane_sums(v[4], v[5], v[6], v[7]);
  return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

inline Vec vec_load_f16(const uint8_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Vec vec_load_bf16(const uint8_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline Vec vec_load_i8(const uint8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}
inline void vec_store_i16(int16_t* p, Vec a) {
  const __m256i wide = _mm256_cvtps_epi32(a);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
      _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)));
}

inline Sums add_pairs(Sums sum, Words a, Sums b) {
  return sum + reinterpret_cast<Sums>(
                   _mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}

}  // namespace
}  // namespace millrace
