// Four floats in a NEON register of a 64-bit Arm processor. Included only by kernels_neon.cc. The
// verbs are documented in vec_avx512.h.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace millrace {
namespace {

constexpr const char* kLevelName = "neon";
constexpr int kWidth = 4;
constexpr int kTileRows = 6;    // x 4 outputs = 24 accumulators of 32 registers
constexpr int kBlockRows = 12;  // of a tile over packed weights: 12 integer and 12 float sums
constexpr int kValueRows = 4;   // heads that share a load of V: 4 x 4 accumulators

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
inline Vec vec_fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
// Not vminq and vmaxq: of a NaN in either they return it.
inline Vec vec_min(Vec a, Vec b) { return a < b ? a : b; }
inline Vec vec_max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec vec_round(Vec a) { return vrndnq_f32(a); }
inline float vec_max_of(Vec a) { return vmaxvq_f32(a); }
inline Vec vec_sums(const Vec* v) {
  return vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3]));
}
inline void vec_sums4(const Vec* v, float* out) { vst1q_f32(out, vec_sums(v)); }

inline Vec vec_load_f16(const uint8_t* p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
inline Vec vec_load_bf16(const uint8_t* p) {
  return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16));
}
inline Vec vec_load_i8(const uint8_t* p) {
  uint32_t bytes;
  std::memcpy(&bytes, p, sizeof(bytes));
  const int16x8_t wide = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(bytes)));
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
}
inline void vec_store_i16(int16_t* p, Vec a) { vst1_s16(p, vqmovn_s32(vcvtnq_s32_f32(a))); }

inline Sums add_pairs(Sums sum, Words a, Sums b) {
  const auto words = reinterpret_cast<int16x8_t>(a), pairs = reinterpret_cast<int16x8_t>(b);
  const int32x4_t low = vmull_s16(vget_low_s16(words), vget_low_s16(pairs));
  return sum + reinterpret_cast<Sums>(vpaddq_s32(low, vmull_high_s16(words, pairs)));
}

}  // namespace
}  // namespace millrace
