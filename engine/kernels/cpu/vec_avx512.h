// Sixteen floats in an AVX-512 register (F, BW, VL, DQ). Included only by kernels_avx512.cc and
// kernels_avx512_vnni.cc, which are compiled with those instructions: everything here is unnamed,
// so that no other file can link a function of this one.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace millrace {
namespace {

#if defined(__AVX512VNNI__)
constexpr const char* kLevelName = "avx512vnni";
#else
constexpr const char* kLevelName = "avx512";
#endif
constexpr int kWidth = 16;
constexpr int kTileRows = 6;    // x 4 outputs = 24 accumulators of 32 registers
constexpr int kBlockRows = 12;  // of a tile over packed weights: 12 integer and 12 float sums
constexpr int kValueRows = 4;   // heads that share a load of V: 4 x 4 accumulators

using Vec = __m512;
using Sums = int32_t __attribute__((vector_size(64)));
using Words = uint16_t __attribute__((vector_size(64)));

// The first n floats (0 <= n <= kWidth), then zeros; reads nothing beyond them.
inline Vec vec_load_n(const float* p, int n) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}
inline void vec_store_n(float* p, Vec a, int n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), a);
}
inline Vec vec_fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
// Of a NaN in either, both return b.
inline Vec vec_min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec vec_max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec vec_round(Vec a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline float vec_max_of(Vec a) { return _mm512_reduce_max_ps(a); }
inline Vec vec_load_f16(const uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Vec vec_load_bf16(const uint8_t* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
inline Vec vec_load_i8(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}
// Whole numbers of 16 bits.
inline void vec_store_i16(int16_t* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(a)));
}

// Per 128-bit lane the sums of a, b, c and d.
inline __m512 lane_sums(Vec a, Vec b, Vec c, Vec d) {
  const __m512 ab = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
  const __m512 cd = _mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d);
  const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  return _mm512_castpd_ps(low) + _mm512_castpd_ps(high);
}
inline __m512 add_lane_pairs(__m512 a, __m512 b) {  // a0+a1, a2+a3, b0+b1, b2+b3
  return _mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xdd);
}
// out[i] = the sum of v[i]'s elements, i < 4.
inline void vec_sums4(const Vec* v, float* out) {
  const __m512 s = lane_sums(v[0], v[1], v[2], v[3]);
  const __m512 pairs = add_lane_pairs(s, s);
  _mm_storeu_ps(out, _mm512_castps512_ps128(pairs) + _mm512_extractf32x4_ps(pairs, 1));
}
// Element i = the sum of v[i]'s elements, i < kWidth.
inline Vec vec_sums(const Vec* v) {
  const __m512 a = lane_sums(v[0], v[1], v[2], v[3]);
  const __m512 b = lane_sums(v[4], v[5], v[6], v[7]);
  const __m512 c = lane_sums(v[8], v[9], v[10], v[11]);
  const __m512 d = lane_sums(v[12], v[13], v[14], v[15]);
  return add_lane_pairs(add_lane_pairs(a, b), add_lane_pairs(c, d));
}

// Per 32-bit lane: sum + a's even word * b's + a's odd word * b's.
inline Sums add_pairs(Sums sum, Words a, Sums b) {
  const auto words = reinterpret_cast<__m512i>(a);
  const auto pairs = reinterpret_cast<__m512i>(b);
#if defined(__AVX512VNNI__)
  return reinterpret_cast<Sums>(_mm512_dpwssd_epi32(reinterpret_cast<__m512i>(sum), words, pairs));
#else
  return sum + reinterpret_cast<Sums>(_mm512_madd_epi16(words, pairs));
#endif
}

}  // namespace
}  // namespace millrace
