// Sixteen floats in an AVX-512 register (F, BW, VL, DQ). Included only by kernels_avx512.cc and
// kernels_avx512_vnni.cc, which are compiled with those instructions: everything here is unnamed,
// so that no other file can link a function of this one.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

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

struct Vec {
  __m512 v;
};

inline Vec vec_set(float x) { return {_mm512_set1_ps(x)}; }
inline Vec vec_load(const float* p) { return {_mm512_loadu_ps(p)}; }
// The first n floats (0 <= n <= kWidth), then zeros; reads nothing beyond them.
inline Vec vec_load_n(const float* p, int n) {
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p)};
}
inline void vec_store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
inline void vec_store_n(float* p, Vec a, int n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), a.v);
}
inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec vec_fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// Of a NaN in either, both return b.
inline Vec vec_min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec vec_max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec vec_round(Vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// 2^n of whole n in [-126, 127].
inline Vec vec_exp2_whole(Vec n) {
  const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
// a where x >= bound or x is NaN, else 0.
inline Vec vec_zero_below(Vec x, float bound, Vec a) {
  const __mmask16 keep = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(bound), _CMP_NLT_UQ);
  return {_mm512_maskz_mov_ps(keep, a.v)};
}
inline float vec_max_of(Vec a) { return _mm512_reduce_max_ps(a.v); }

// Per 128-bit lane the sums of a, b, c and d.
inline __m512 lane_sums(Vec a, Vec b, Vec c, Vec d) {
  const __m512 ab = _mm512_unpacklo_ps(a.v, b.v) + _mm512_unpackhi_ps(a.v, b.v);
  const __m512 cd = _mm512_unpacklo_ps(c.v, d.v) + _mm512_unpackhi_ps(c.v, d.v);
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
  return {add_lane_pairs(add_lane_pairs(a, b), add_lane_pairs(c, d))};
}

inline Vec vec_load_f16(const uint8_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline Vec vec_load_bf16(const uint8_t* p) {
  const __m512i wide =
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline Vec vec_load_i8(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}
// Whole numbers of 16 bits.
inline void vec_store_i16(int16_t* p, Vec a) {
  _mm256_storeu_si256(
      reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(a.v)));
}

using Words512 = uint16_t __attribute__((vector_size(64)));
using Sums512 = int32_t __attribute__((vector_size(64)));
// Per 32-bit lane: sum + a's even word * b's + a's odd word * b's.
inline Sums512 add_pairs(Sums512 sum, Words512 a, Sums512 b) {
  const auto words = reinterpret_cast<__m512i>(a);
  const auto pairs = reinterpret_cast<__m512i>(b);
#if defined(__AVX512VNNI__)
  return reinterpret_cast<Sums512>(
      _mm512_dpwssd_epi32(reinterpret_cast<__m512i>(sum), words, pairs));
#else
  return sum + reinterpret_cast<Sums512>(_mm512_madd_epi16(words, pairs));
#endif
}
// table[codes], codes < 16.
inline Words512 lookup_words(Words512 codes, const int* table) {
  Words512 words;
  for (int i = 0; i < 32; ++i) words[i] = static_cast<uint16_t>(table[i % 16]);
  return __builtin_shuffle(words, codes);
}

}  // namespace
}  // namespace millrace
