// Element types of tensors: plain ones and GGUF's quantized blocks.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace millrace {

// An IEEE half. (GCC knows it by this name in C++ on Arm only from 13 on.)
#if defined(__aarch64__)
using Half = __fp16;
#else
using Half = _Float16;
#endif

enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kI32,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kIq4Nl,
  kQ2K,
  kQ3K,
  kQ4K,
  kQ5K,
  kQ6K
};

// A row is stored as blocks of `block_size` elements in `block_bytes` bytes each. Plain types have
// blocks of one. The quantized layouts are GGUF's (ggml-common.h), fields in the order of the
// bytes:
//   Q8_0    f16 scale, 32 x i8
//   Q4_0    f16 scale, 16 bytes of nibbles
//   IQ4_NL  the same, a nibble is an index of a table
//   Q4_1    f16 scale, f16 minimum, 16 bytes of nibbles
//   Q5_0    f16 scale, 32 fifth bits, 16 bytes of nibbles
//   Q5_1    f16 scale, f16 minimum, 32 fifth bits, 16 bytes of nibbles
// and, of 256 elements whose parts have scales (and minimums) of their own,
//   Q2_K    16 x (4-bit scale, 4-bit minimum), 64 bytes of 2 bits, f16 scale, f16 minimum
//   Q3_K    256 third bits, 64 bytes of 2 bits, 16 x 6-bit scale, f16 scale
//   Q4_K    f16 scale, f16 minimum, 8 x (6-bit scale, 6-bit minimum), 128 bytes of nibbles
//   Q5_K    f16 scale, f16 minimum, 8 x (6-bit scale, 6-bit minimum), 256 fifth bits, 128 bytes
//   Q6_K    128 bytes of nibbles, 64 bytes of 2 bits, 16 x i8 scale, f16 scale
struct DTypeInfo {
  std::string_view name;
  int block_size;
  int block_bytes;
  int packed_bytes = block_bytes;  // a block's share of a packed matrix
};

constexpr DTypeInfo dtype_info(DType dtype) {
  switch (dtype) {
    case DType::kF32: return {"f32", 1, 4};
    case DType::kF16: return {"f16", 1, 2};
    case DType::kBF16: return {"bf16", 1, 2};
    case DType::kI32: return {"i32", 1, 4};
    case DType::kQ8_0: return {"q8_0", 32, 34};
    case DType::kQ4_0: return {"q4_0", 32, 18};
    case DType::kQ4_1: return {"q4_1", 32, 20};
    case DType::kQ5_0: return {"q5_0", 32, 22};
    case DType::kQ5_1: return {"q5_1", 32, 24};
    case DType::kIq4Nl: return {"iq4_nl", 32, 18};
    case DType::kQ2K: return {"q2_k", 256, 84, 100};
    case DType::kQ3K: return {"q3_k", 256, 110, 114};
    case DType::kQ4K: return {"q4_k", 256, 144, 148};
    case DType::kQ5K: return {"q5_k", 256, 176, 180};
    case DType::kQ6K: return {"q6_k", 256, 210};
  }
  return {"?", 1, 0};
}

constexpr bool is_quantized(DType dtype) { return dtype_info(dtype).block_size > 1; }

// Bytes of `count` elements; `count` is a multiple of the block size.
constexpr int64_t dtype_bytes(DType dtype, int64_t count) {
  const DTypeInfo info = dtype_info(dtype);
  return count / info.block_size * info.block_bytes;
}

// The CPU multiplies by quantized matrices packed in groups of so many rows (Ops::pack_weights).
inline constexpr int kPackedRows = 16;

// What a matrix takes in memory: packed, if it is quantized.
constexpr int64_t held_bytes(DType dtype, int64_t rows, int64_t cols) {
  if (!is_quantized(dtype)) return dtype_bytes(dtype, rows * cols);
  const DTypeInfo info = dtype_info(dtype);
  return (rows + kPackedRows - 1) / kPackedRows * kPackedRows * (cols / info.block_size) *
         info.packed_bytes;
}

// As f32, f16 or bf16, rounded to nearest even. Out of range is infinity; NaN stays NaN.
void narrow(std::span<const float> from, DType to, uint8_t* out);

}  // namespace millrace
