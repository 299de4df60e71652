// Matrix products over packed quantized weights (blocks.h). A row of x becomes 16-bit integers with
// a scale per 32 elements: off by at most 1/65534 of the largest of them, a hundredth of what 8
// bits would cost. Its products with the codes are summed exactly in 32-bit integers, and each step
// of elements with one scale then enters the output's fp32 sum, in order. So an output's bits
// depend on its row of x and its weights alone.
#pragma once

namespace millrace {
namespace {

constexpr float kLargest = 32767;

// Lanes of a packed plane: kWidth outputs, for each the words of an even and an odd element.
// table[codes], codes < 16.
inline Words lookup_words(Words codes, const int* table) {
  Words low{}, high{};  // all of the table where a vector holds it
  for (int i = 0; i < kWidth * 2; ++i) {
    low[i] = static_cast<uint16_t>(table[i % 16]);
    high[i] = static_cast<uint16_t>(table[(kWidth * 2 + i) % 16]);
  }
  return kWidth < 8 ? __builtin_shuffle(low, high, codes) : __builtin_shuffle(low, codes);
}
inline Words load_words(const uint8_t* p) {
  Words w;
  std::memcpy(&w, p, sizeof(w));
  return w;
}

// x [k] as integers: q [k], a scale per 32 elements, and per `step` the sum of q. NaN or infinity
// makes its scale NaN.
void quantize_row(const float* x, int64_t k, int step, int16_t* q, float* scale, float* sum) {
  const Vec limit = vec_set(kLargest);
  for (int64_t b = 0; b < k / 32; ++b, x += 32, q += 32) {
    Vec largest{}, poison{};
    for (int i = 0; i < 32; i += kWidth) {
      const Vec v = vec_load(x + i);
      largest = vec_max(largest, vec_max(v, Vec{} - v));
      poison = vec_fma(v, Vec{}, poison);
    }
    const float most = vec_max_of(largest);
    scale[b] = most * (1 / kLargest) + vec_sum_of(poison);
    const Vec inverse = vec_set(most > 1e-30f ? kLargest / most : 0);
    Vec total{};
    for (int i = 0; i < 32; i += kWidth) {
      const Vec scaled = vec_min(vec_load(x + i) * inverse, limit);
      const Vec whole = vec_round(vec_max(scaled, Vec{} - limit));
      vec_store_i16(q + i, whole);
      total = total + whole;
      if ((i + kWidth) % step == 0) {
        *sum++ = vec_sum_of(total);
        total = Vec{};
      }
    }
  }
}

// The codes of pair j for kWidth outputs. low, high: the planes of 32 elements, from the outputs'
// first word on.
template <DType kType>
inline Words pair_codes(const uint8_t* low, const uint8_t* high, int j) {
  constexpr BlockFormat kFormat = block_format(kType);
  constexpr auto kMask = [](int bits) { return static_cast<uint16_t>((1 << bits) - 1); };
  const auto bits_of = [&](const uint8_t* plane, int bits) {
    const int at = j * bits;
    const Words w = load_words(plane + at / 16 * 4 * kPackedRows) >> static_cast<uint16_t>(at % 16);
    return at % 16 + bits == 16 ? w : w & kMask(bits);
  };
  Words codes = bits_of(low, kFormat.low.bits);
  if constexpr (kFormat.high.bits > 0) {
    codes |= bits_of(high, kFormat.high.bits) << static_cast<uint16_t>(kFormat.low.bits);
  }
  if constexpr (kFormat.is_table) codes = lookup_words(codes, kIq4Values);
  return codes;
}

// kRows rows from m0 on times kWidth outputs of a group, those from `lane` on. A lone row's
// integers go to several sums in turn, so that one product need not wait for the one before.
template <DType kType, int kRows>
inline void block_tile(
    const BlockLinearArgs& a, const uint8_t* group, int64_t n0, int lane, int64_t m0) {
  constexpr BlockFormat kFormat = block_format(kType);
  constexpr PackedLayout kLayout = packed_layout(kType);
  constexpr int kBlock = dtype_info(kType).block_size;
  constexpr int kSteps = 32 / kFormat.step;
  constexpr int kPairs = kFormat.step / 2;
  constexpr int kTurns = kRows == 1 ? 4 : 1;
  constexpr bool kHasMinimum = kFormat.minimum_at >= 0;
  Vec acc[kRows] = {};
  const uint8_t* p = group;
  int64_t part = 0;  // of 32 elements
  for (int64_t block = 0; block < a.k / kBlock; ++block) {
    const Vec block_scale = vec_load_f16(p + 2 * lane);
    const Vec block_minimum = kHasMinimum ? vec_load_f16(p + 2 * kPackedRows + 2 * lane) : Vec{};
    p += kLayout.header;
    for (int i = 0; i < kBlock / 32; ++i, ++part, p += kLayout.part_bytes) {
      const uint8_t* low = p + kSteps * kLayout.step_bytes + 4 * lane;
      for (int s = 0; s < kSteps; ++s) {
        Sums sums[kRows][kTurns] = {};
        const int16_t* x = a.x + m0 * a.k + part * 32 + s * kFormat.step;
#pragma GCC unroll 16
        for (int j = 0; j < kPairs; ++j) {
          const Words codes = pair_codes<kType>(low, low + kLayout.low_bytes, s * kPairs + j);
#pragma GCC unroll 16
          for (int m = 0; m < kRows; ++m) {
            int32_t pair;
            std::memcpy(&pair, x + m * a.k + 2 * j, 4);
            sums[m][j % kTurns] = add_pairs(sums[m][j % kTurns], codes, Sums{} + pair);
          }
        }
        Vec scale = block_scale;
        Vec minimum = block_minimum;
        if constexpr (kLayout.step_bytes > 0) {
          const uint8_t* factors = p + s * kLayout.step_bytes + lane;
          scale = scale * vec_load_i8(factors);
          if (kHasMinimum) minimum = minimum * vec_load_i8(factors + kPackedRows);
        }
        if (!kHasMinimum) minimum = scale * vec_set(-kFormat.bias);
#pragma GCC unroll 16
        for (int m = 0; m < kRows; ++m) {
          for (int t = 1; t < kTurns; ++t) sums[m][0] += sums[m][t];
          const Vec dot = __builtin_convertvector(sums[m][0], Vec);
          Vec value = dot * scale;
          if constexpr (kHasMinimum || kFormat.bias != 0) {
            const Vec sum = vec_set(a.sum[(m0 + m) * (a.k / kFormat.step) + part * kSteps + s]);
            value = vec_fma(dot, scale, minimum * sum);
          }
          acc[m] = vec_fma(value, vec_set(a.scale[(m0 + m) * (a.k / 32) + part]), acc[m]);
        }
      }
    }
  }
  const int count = static_cast<int>(min_of(kWidth, a.n_end - n0));
  for (int m = 0; m < kRows; ++m) {
    if (a.bias != nullptr) acc[m] = acc[m] + load_part(a.bias + n0, count);
    store_part(a.out + (m0 + m) * a.out_stride + n0, acc[m], count);
  }
}

template <DType kType>
void block_linear_as(const BlockLinearArgs& a) {
  const int64_t group_bytes = a.k / dtype_info(kType).block_size * packed_layout(kType).block_bytes;
  // A group's weights stay in the first cache while the rows pass by.
  for (int64_t n = a.n_begin; n < a.n_end; n += kPackedRows) {
    const uint8_t* group = a.w + n / kPackedRows * group_bytes;
    for (int lane = 0; lane < kPackedRows && n + lane < a.n_end; lane += kWidth) {
      int64_t m = 0;
      for (; m + kBlockRows <= a.rows; m += kBlockRows) {
        block_tile<kType, kBlockRows>(a, group, n + lane, lane, m);
      }
      for (; m + 4 <= a.rows; m += 4) block_tile<kType, 4>(a, group, n + lane, lane, m);
      for (; m < a.rows; ++m) block_tile<kType, 1>(a, group, n + lane, lane, m);
    }
  }
}

void block_linear(const BlockLinearArgs& a) {
  with_block_type(a.w_dtype, [&]<DType kType>() { block_linear_as<kType>(a); });
}

}  // namespace
}  // namespace millrace
