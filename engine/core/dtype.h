// Element types of tensors: plain ones and GGUF's quantized blocks.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace millrace {

enum class DType : uint8_t { kF32, kF16, kBF16, kI32, kQ8_0, kQ4_0, kQ4_1 };

// A row is stored as blocks of `block_size` elements in `block_bytes` bytes each. Plain types have
// blocks of one. The quantized layouts are GGUF's (ggml-common.h): Q8_0 = f16 scale, 32 x i8;
// Q4_0 = f16 scale, 16 bytes of nibbles; Q4_1 = f16 scale, f16 minimum, 16 bytes of nibbles.
struct DTypeInfo {
  std::string_view name;
  int block_size;
  int block_bytes;
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
  }
  return {"?", 1, 0};
}

constexpr bool is_quantized(DType dtype) { return dtype_info(dtype).block_size > 1; }

// Bytes of `count` elements; `count` is a multiple of the block size.
constexpr int64_t dtype_bytes(DType dtype, int64_t count) {
  const DTypeInfo info = dtype_info(dtype);
  return count / info.block_size * info.block_bytes;
}

// As f32, f16 or bf16, rounded to nearest even. Out of range is infinity; NaN stays NaN.
void narrow(std::span<const float> from, DType to, uint8_t* out);

}  // namespace millrace
