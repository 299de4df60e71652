// The loops under CpuOps as a table of plain functions: one table per instruction set, made from
// the same bodies (*_body.h). A kernel sees pointers, checks nothing, takes no thread: its caller
// (cpu_ops.cc, sampler.cc) has checked every shape and deals the ranges to threads.
#pragma once

#include <cstdint>

#include "engine/kernels/cpu/blocks.h"

namespace millrace {

// out[m, n] = x[m] · w[n] (+ bias[n]) for m < rows and n in [n_begin, n_end).
struct ProductArgs {
  int64_t rows = 0;
  int64_t k = 0;
  const uint8_t* w = nullptr;  // row 0, or the first group
  DType w_dtype = DType::kF32;
  int64_t n_begin = 0;
  int64_t n_end = 0;
  const float* bias = nullptr;  // or null
  float* out = nullptr;         // element [0, 0]
  int64_t out_stride = 0;       // floats
};
// w: plain.
struct LinearArgs : ProductArgs {
  const float* x = nullptr;
  int64_t x_stride = 0;    // floats
  int64_t w_stride = 0;    // bytes
  float* panel = nullptr;  // [n_end - n_begin, panel_stride(k)], when rows > kStreamRows
};
// x as quantize_row made it, w packed (blocks.h); n_begin is a multiple of kPackedRows.
struct BlockLinearArgs : ProductArgs {
  const int16_t* x = nullptr;    // [rows, k]
  const float* scale = nullptr;  // [rows, k / 32]
  const float* sum = nullptr;    // [rows, k / step]
};

// Up to so many rows weights are unpacked in registers, each once; more rows go through a panel of
// unpacked weights that stays in the cache. Both compute the same bits.
constexpr int64_t kStreamRows = 4;
// Floats from row to row of a panel: whole cache lines.
constexpr int64_t panel_stride(int64_t k) { return (k + 15) / 16 * 16; }

// Attention of `tokens` consecutive rows of one sequence and `heads` query heads of one KV head.
struct AttentionArgs {
  const float* q = nullptr;  // first token, first head; heads are adjacent
  int64_t q_stride = 0;      // floats from token to token
  float* out = nullptr;
  int64_t out_stride = 0;
  const int32_t* positions = nullptr;  // [tokens], ascending by one
  int32_t tokens = 0;
  int32_t heads = 0;
  int32_t head_dim = 0;
  int32_t window = 0;  // 0: none
  float scale = 0;
  float softcap = 0;         // 0: none
  const float* k = nullptr;  // block 0 of this KV head: [block_size, head_dim]
  const float* v = nullptr;
  int64_t block_stride = 0;               // floats from block to block
  int32_t block_size = 0;                 // a power of two >= 16
  const uint32_t* block_table = nullptr;  // up to the last token's position
  float* scratch = nullptr;               // attention_scratch_floats(tokens * heads, head_dim)
};

// Keys are taken kKeyChunk at a time from position 0 on, whatever the block size.
constexpr int32_t kKeyChunk = 32;
constexpr int64_t attention_scratch_floats(int64_t rows, int64_t head_dim) {
  return rows * (1 + 16 + head_dim + kKeyChunk + 1);
}

struct CpuKernels {
  const char* name;
  void (*linear)(const LinearArgs& args);
  // x [k] as 16-bit integers q [k] with a scale per 32, and the sum of q per `step`.
  void (*quantize_row)(const float* x, int64_t k, int step, int16_t* q, float* scale, float* sum);
  void (*block_linear)(const BlockLinearArgs& args);
  // `n` elements of a stored row of a plain type as fp32.
  void (*widen)(const uint8_t* row, DType dtype, int64_t n, float* out);
  // out = x / rms(x) * weight.
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* out);
  void (*add)(float* x, const float* y, int64_t n);  // x += y
  // out = act(gate) * up, silu's or the tanh form of gelu's.
  void (*gate_mul)(const float* gate, const float* up, int64_t n, bool gelu, float* out);
  void (*soft_cap)(float* x, int64_t n, float cap);  // x = cap * tanh(x / cap)
  // The n rotated elements of a head; `cos_sin` is n/2 cosines, then n/2 sines. In place allowed.
  void (*rope)(const float* in, const float* cos_sin, int32_t n, bool interleaved, float* out);
  void (*attention)(const AttentionArgs& args);
  // False when x holds NaN or infinity; else *max.
  bool (*finite_max)(const float* x, int64_t n, float* max);
  // y = max((x - max) * factor, -1e30), w = exp(y); y and w may be null. Returns the sum of w.
  double (*scaled_exp)(const float* x, int64_t n, float max, float factor, float* y, float* w);
};

const CpuKernels& kernels_avx512_vnni();
const CpuKernels& kernels_avx512();
const CpuKernels& kernels_avx2();
const CpuKernels& kernels_neon();
const CpuKernels& kernels_portable();

}  // namespace millrace
