#include "engine/kernels/cpu/blocks.h"

#include <cstring>

#include "engine/base/check.h"

namespace millrace {

namespace {

constexpr int kMostElements = 256;
constexpr int kMostSteps = 16;

// A block, its codes in order. Where the type has no factors, they are 1.
struct Block {
  uint8_t codes[kMostElements];
  int8_t factors[kMostSteps];
  int8_t minimum_factors[kMostSteps];
  uint16_t scale;
  uint16_t minimum;
};

float half_value(uint16_t bits) {
  Half half;
  std::memcpy(&half, &bits, 2);
  return static_cast<float>(half);
}

// Adds a plane's bits to the codes, `shift` bits up.
template <CodePlane kPlane>
void take_plane(const uint8_t* block, int elements, int shift, uint8_t* codes) {
  constexpr int kMask = (1 << kPlane.bits) - 1;
  const uint8_t* from = block + kPlane.at;
  for (int e = 0; e < elements; from += kPlane.span) {
    for (int bit = 0; bit < 8; bit += kPlane.bits) {
      for (int l = 0; l < kPlane.span; ++l, ++e) {
        codes[e] = static_cast<uint8_t>(codes[e] | (from[l] >> bit & kMask) << shift);
      }
    }
  }
}

// ggml-quants.c tells how each type packs them.
template <DType kType>
void take_factors(const uint8_t* p, Block& out) {
  constexpr BlockFormat kFormat = block_format(kType);
  const uint8_t* f = p + kFormat.factors_at;
  const auto put = [&](int i, int factor, int minimum) {
    out.factors[i] = static_cast<int8_t>(factor);
    out.minimum_factors[i] = static_cast<int8_t>(minimum);
  };
  const int steps = dtype_info(kType).block_size / kFormat.step;
  for (int i = 0; i < steps; ++i) {
    switch (kFormat.factors) {
      case BlockFactors::kNone: put(i, 1, 1); break;
      case BlockFactors::kBytes: put(i, static_cast<int8_t>(f[i]), 0); break;
      case BlockFactors::kNibbles: put(i, f[i] & 15, -(f[i] >> 4)); break;
      case BlockFactors::kSixBits:
        put(i, ((i < 8 ? f[i] & 15 : f[i - 8] >> 4) | (f[8 + i % 4] >> 2 * (i / 4) & 3) << 4) - 32,
            0);
        break;
      case BlockFactors::kPairsOfSixBits:
        if (i < 4) {
          put(i, f[i] & 63, -(f[i + 4] & 63));
        } else {
          put(i, (f[i + 4] & 15) | f[i - 4] >> 6 << 4, -(f[i + 4] >> 4 | f[i] >> 6 << 4));
        }
        break;
    }
  }
}

template <DType kType>
void read_block(const uint8_t* p, Block& out) {
  constexpr BlockFormat kFormat = block_format(kType);
  constexpr int kElements = dtype_info(kType).block_size;
  std::memset(out.codes, 0, kElements);
  take_plane<kFormat.low>(p, kElements, 0, out.codes);
  if constexpr (kFormat.high.bits > 0) {
    take_plane<kFormat.high>(p, kElements, kFormat.low.bits, out.codes);
  }
  if constexpr (kType == DType::kQ8_0) {  // signed as stored
    for (int e = 0; e < kElements; ++e) out.codes[e] ^= 0x80;
  }
  take_factors<kType>(p, out);
  std::memcpy(&out.scale, p + kFormat.scale_at, 2);
  out.minimum = 0;
  if constexpr (kFormat.minimum_at >= 0) std::memcpy(&out.minimum, p + kFormat.minimum_at, 2);
}

// The products are exact in fp32 (11 bits of scale, 7 of factor), so the value is rounded once.
template <DType kType>
void widen_block(const Block& block, float* out) {
  constexpr BlockFormat kFormat = block_format(kType);
  const float block_scale = half_value(block.scale);
  const float block_minimum = kFormat.minimum_at >= 0 ? half_value(block.minimum) : 0;
  for (int step = 0; step < dtype_info(kType).block_size / kFormat.step; ++step) {
    const float scale = block_scale * static_cast<float>(block.factors[step]);
    const float minimum = block_minimum * static_cast<float>(block.minimum_factors[step]);
    for (int e = step * kFormat.step; e < (step + 1) * kFormat.step; ++e) {
      const int code = block.codes[e];
      const int number = kFormat.is_table ? kIq4Values[code & 15] : code - kFormat.bias;
      out[e] = static_cast<float>(number) * scale;
      if constexpr (kFormat.minimum_at >= 0) out[e] += minimum;
    }
  }
}

// A packed group is read and written by the same walk: kPack copies fields into it, else out of it.
template <bool kPack, typename Field, typename Byte>
void move_field(Field& field, Byte* at) {
  if constexpr (kPack) {
    std::memcpy(at, &field, sizeof(Field));
  } else {
    std::memcpy(&field, at, sizeof(Field));
  }
}

// Word 2n + t of a plane's vector for elements 2j + t of 32, all pairs: as blocks.h says.
// Types without a high plane have none of its bytes.
template <bool kPack, typename Byte>
void move_plane(uint8_t* codes, int row, int bits, int shift, Byte* plane) {
  const int mask = (1 << bits) - 1;
  for (int e = 0; e < (bits > 0 ? 32 : 0); ++e) {
    const int at = e / 2 * bits;
    Byte& word = plane[at / 16 * 4 * kPackedRows + 4 * row + e % 2 * 2 + at % 16 / 8];
    if constexpr (kPack) {
      word = static_cast<uint8_t>(word | (codes[e] >> shift & mask) << at % 8);
    } else {
      codes[e] = static_cast<uint8_t>(codes[e] | (word >> at % 8 & mask) << shift);
    }
  }
}

template <DType kType, bool kPack, typename Byte>
void move_block(Block& block, int row, Byte* packed) {
  constexpr BlockFormat kFormat = block_format(kType);
  constexpr PackedLayout kLayout = packed_layout(kType);
  constexpr bool kHasMinimum = kFormat.minimum_at >= 0;
  move_field<kPack>(block.scale, packed + 2 * row);
  if (kHasMinimum) move_field<kPack>(block.minimum, packed + 2 * kPackedRows + 2 * row);
  for (int part = 0; part < dtype_info(kType).block_size / 32; ++part) {
    Byte* p = packed + kLayout.header + part * kLayout.part_bytes;
    for (int s = 0; s < 32 / kFormat.step; ++s, p += kLayout.step_bytes) {
      if (kLayout.step_bytes == 0) continue;
      const int step = part * (32 / kFormat.step) + s;
      move_field<kPack>(block.factors[step], p + row);
      if (kHasMinimum) move_field<kPack>(block.minimum_factors[step], p + kPackedRows + row);
    }
    uint8_t* codes = block.codes + part * 32;
    move_plane<kPack>(codes, row, kFormat.low.bits, 0, p);
    move_plane<kPack>(codes, row, kFormat.high.bits, kFormat.low.bits, p + kLayout.low_bytes);
  }
}

template <typename Body>
void with_type(DType dtype, const Body& body) {
  CHECK(with_block_type(dtype, body), "{} has no blocks", dtype_info(dtype).name);
}

}  // namespace

void widen_blocks(const uint8_t* row, DType dtype, int64_t n, float* out) {
  with_type(dtype, [&]<DType kType>() {
    constexpr DTypeInfo kInfo = dtype_info(kType);
    Block block;
    for (int64_t b = 0; b < n / kInfo.block_size; ++b) {
      read_block<kType>(row + b * kInfo.block_bytes, block);
      widen_block<kType>(block, out + b * kInfo.block_size);
    }
  });
}

void pack_group(
    const uint8_t* from, int64_t stride, int64_t rows, DType dtype, int64_t k, uint8_t* to) {
  with_type(dtype, [&]<DType kType>() {
    constexpr DTypeInfo kInfo = dtype_info(kType);
    constexpr PackedLayout kLayout = packed_layout(kType);
    static_assert(kLayout.block_bytes == kPackedRows * kInfo.packed_bytes);
    const int64_t blocks = k / kInfo.block_size;
    std::memset(to, 0, static_cast<size_t>(blocks * kLayout.block_bytes));
    Block block;
    for (int row = 0; row < rows; ++row) {
      for (int64_t b = 0; b < blocks; ++b) {
        read_block<kType>(from + row * stride + b * kInfo.block_bytes, block);
        move_block<kType, /*kPack=*/true>(block, row, to + b * kLayout.block_bytes);
      }
    }
  });
}

void widen_packed(const uint8_t* group, DType dtype, int64_t k, int64_t row, float* out) {
  with_type(dtype, [&]<DType kType>() {
    constexpr int kElements = dtype_info(kType).block_size;
    constexpr PackedLayout kLayout = packed_layout(kType);
    Block block;
    for (int64_t b = 0; b < k / kElements; ++b) {
      std::memset(block.codes, 0, kElements);
      if (kLayout.step_bytes == 0) block.factors[0] = block.minimum_factors[0] = 1;
      move_block<kType, /*kPack=*/false>(
          block, static_cast<int>(row), group + b * kLayout.block_bytes);
      widen_block<kType>(block, out + b * kElements);
    }
  });
}

}  // namespace millrace
