// GGUF's quantized blocks as data, and how the CPU holds a matrix of them.
//
// An element is (code - bias) * scale (+ minimum), or a table's value * scale. Scales and minimums
// are f16 of the block, times 8-bit factors of each `step` elements in the types of 256 elements.
//
// Held ("packed"), kGroup rows lie together so that a vector's lanes are outputs. Per block of a
// group: 16 f16 scales [16 f16 minimums]; then per 32 elements: [per step: 16 factors, 16 factors
// of the minimum], then the codes as planes of their low and high bits. A plane's vectors are of 32
// words of 16 bits, word 2n + t for row n and element 2j + t of pair j = 0..15; pair j takes `bits`
// bits of each word of vector j * bits / 16 from bit j * bits % 16 on. Rows beyond the last are 0.
#pragma once

#include <cstdint>

#include "engine/core/dtype.h"

namespace millrace {

// Bits of the codes in a stored block: element e, in chunk c = e / (8 / bits * span) and there of
// row r = e / span and column l = e % span, has the `bits` from r * bits on of byte
// at + c * span + l.
struct CodePlane {
  int at = 0;
  int bits = 0;
  int span = 1;
};

// How a block tells the factors of its steps.
enum class BlockFactors : uint8_t { kNone, kNibbles, kSixBits, kPairsOfSixBits, kBytes };

struct BlockFormat {
  CodePlane low, high;
  int step;        // elements that share a scale
  int bias;        // the code of 0
  int scale_at;    // bytes
  int minimum_at;  // bytes; -1: no minimum
  BlockFactors factors = BlockFactors::kNone;
  int factors_at = 0;
  bool is_table = false;  // codes are indices of kIq4Values
};

inline constexpr int kIq4Values[16] = {
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

constexpr BlockFormat block_format(DType dtype) {
  using enum BlockFactors;
  switch (dtype) {
    case DType::kQ8_0: return {{2, 8, 32}, {}, 32, 128, 0, -1};
    case DType::kQ4_0: return {{2, 4, 16}, {}, 32, 8, 0, -1};
    case DType::kQ4_1: return {{4, 4, 16}, {}, 32, 0, 0, 2};
    case DType::kQ5_0: return {{6, 4, 16}, {2, 1, 1}, 32, 16, 0, -1};
    case DType::kQ5_1: return {{8, 4, 16}, {4, 1, 1}, 32, 0, 0, 2};
    case DType::kIq4Nl: return {{2, 4, 16}, {}, 32, 0, 0, -1, kNone, 0, true};
    case DType::kQ2K: return {{16, 2, 32}, {}, 16, 0, 80, 82, kNibbles, 0};
    case DType::kQ3K: return {{32, 2, 32}, {0, 1, 32}, 16, 4, 108, -1, kSixBits, 96};
    case DType::kQ4K: return {{16, 4, 32}, {}, 32, 0, 0, 2, kPairsOfSixBits, 4};
    case DType::kQ5K: return {{48, 4, 32}, {16, 1, 32}, 32, 0, 0, 2, kPairsOfSixBits, 4};
    case DType::kQ6K: return {{0, 4, 64}, {128, 2, 32}, 16, 32, 208, -1, kBytes, 192};
    default: return {};
  }
}

// body.operator()<kType>() of a quantized type. False, and nothing done, of others.
template <typename Body>
constexpr bool with_block_type(DType dtype, const Body& body) {
  using enum DType;
  const auto try_all = [&]<DType... kTypes>() {
    return ((dtype == kTypes && (body.template operator()<kTypes>(), true)) || ...);
  };
  return try_all.template
  operator()<kQ8_0, kQ4_0, kQ4_1, kQ5_0, kQ5_1, kIq4Nl, kQ2K, kQ3K, kQ4K, kQ5K, kQ6K>();
}

// Bytes of the parts of a packed group, each of kPackedRows rows.
struct PackedLayout {
  int header;       // scales and minimums of a block
  int step_bytes;   // factors of a step
  int low_bytes;    // of 32 elements
  int part_bytes;   // of 32 elements, factors and codes
  int block_bytes;  // all of a block
};
constexpr PackedLayout packed_layout(DType dtype) {
  const BlockFormat f = block_format(dtype);
  const int kinds = f.minimum_at >= 0 ? 2 : 1;
  PackedLayout p{};
  p.header = 2 * kPackedRows * kinds;
  p.step_bytes = f.factors == BlockFactors::kNone ? 0 : kPackedRows * kinds;
  p.low_bytes = 4 * kPackedRows * f.low.bits;
  p.part_bytes = 32 / f.step * p.step_bytes + p.low_bytes + 4 * kPackedRows * f.high.bits;
  p.block_bytes = p.header + dtype_info(dtype).block_size / 32 * p.part_bytes;
  return p;
}

// `n` elements of a stored row as fp32, exactly. dtype: quantized.
void widen_blocks(const uint8_t* row, DType dtype, int64_t n, float* out);

// rows <= kPackedRows stored rows of k elements, `stride` bytes apart, as one packed group.
void pack_group(
    const uint8_t* from, int64_t stride, int64_t rows, DType dtype, int64_t k, uint8_t* to);

// Row `row` of a packed group as fp32: what widen_blocks gave of it.
void widen_packed(const uint8_t* group, DType dtype, int64_t k, int64_t row, float* out);

}  // namespace millrace
