// Views, buffers and the CPU device.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "engine/base/status.h"
#include "engine/core/device.h"

namespace millrace {
namespace {

TEST(DType, BytesOfBlocks) {
  EXPECT_EQ(dtype_bytes(DType::kF32, 3), 12);
  EXPECT_EQ(dtype_bytes(DType::kBF16, 3), 6);
  EXPECT_EQ(dtype_bytes(DType::kQ8_0, 64), 68);
  EXPECT_EQ(dtype_bytes(DType::kQ4_1, 96), 60);
  EXPECT_TRUE(is_quantized(DType::kQ4_0));
  EXPECT_FALSE(is_quantized(DType::kF16));
}

TEST(DType, NarrowRoundsToNearestEven) {
  const auto half = [](float value, DType to) {
    uint16_t bits = 0;
    narrow({&value, 1}, to, reinterpret_cast<uint8_t*>(&bits));
    return bits;
  };
  const auto f16 = [&](float value) { return half(value, DType::kF16); };
  const auto bf16 = [&](float value) { return half(value, DType::kBF16); };
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(f16(-0.0f), 0x8000);
  EXPECT_EQ(f16(1.0f), 0x3c00);
  EXPECT_EQ(f16(1 + 0x1p-11f), 0x3c00);  // a tie goes to the even one
  EXPECT_EQ(f16(1 + 0x3p-11f), 0x3c02);
  EXPECT_EQ(f16(0x1p-14f), 0x0400);    // the least normal number
  EXPECT_EQ(f16(0x3ffp-24f), 0x03ff);  // subnormals
  EXPECT_EQ(f16(-0x1p-24f), 0x8001);
  EXPECT_EQ(f16(0x3p-25f), 0x0002);
  EXPECT_EQ(f16(0x1p-25f), 0x0000);
  EXPECT_EQ(f16(0x1.000002p-25f), 0x0001);
  EXPECT_EQ(f16(65519.0f), 0x7bff);  // the greatest
  EXPECT_EQ(f16(65520.0f), 0x7c00);
  EXPECT_EQ(f16(-infinity), 0xfc00);
  EXPECT_EQ(bf16(-1.0f), 0xbf80);
  EXPECT_EQ(bf16(1 + 0x1p-8f), 0x3f80);
  EXPECT_EQ(bf16(1 + 0x3p-8f), 0x3f82);
  EXPECT_EQ(bf16(0x1p-133f), 0x0001);  // subnormal
  EXPECT_EQ(bf16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_EQ(bf16(infinity), 0x7f80);
  // NaN, also one whose set bits are all cut off.
  for (const uint32_t nan : {0x7fc00000u, 0xffffffffu, 0x7f800001u}) {
    EXPECT_GT(f16(std::bit_cast<float>(nan)) & 0x7fff, 0x7c00);
    EXPECT_GT(bf16(std::bit_cast<float>(nan)) & 0x7fff, 0x7f80);
  }
  const std::vector<float> values = {1.5f, -0x1p-149f};
  std::vector<float> same(2);
  narrow(values, DType::kF32, reinterpret_cast<uint8_t*>(same.data()));
  EXPECT_EQ(values, same);
}

TEST(TensorView, SlicesKeepTheStride) {
  std::vector<float> data(24);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<float>(i);
  const TensorView all(data.data(), DType::kF32, {4, 6});
  EXPECT_TRUE(all.contiguous());
  const TensorView cut = all.slice_rows(1, 2).slice_cols(2, 3);
  EXPECT_EQ(cut.rows(), 2);
  EXPECT_EQ(cut.cols(), 3);
  EXPECT_EQ(cut.row_as<float>(1)[0], 14.0f);
  EXPECT_FALSE(cut.contiguous());
}

TEST(TensorViewDeathTest, OutOfRangeIsABug) {
  float data[4] = {};
  const TensorView view(data, DType::kF32, {2, 2});
  EXPECT_DEATH(view.slice_rows(1, 2), "rows 1\\+2 of 2");
  EXPECT_DEATH(view.slice_cols(-1, 1), "columns");
}

TEST(CpuDevice, ZeroedAlignedAndCopied) {
  const auto device = make_cpu_device();
  const Tensor t = device->tensor(DType::kF32, {3, 5}, "test");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(t.view.data) % 64, 0u);
  for (int64_t i = 0; i < 15; ++i) EXPECT_EQ(t.view.as<float>()[i], 0.0f);
  const float value = 2.5f;
  device->copy_to_device(t.view.data + 8, {reinterpret_cast<const uint8_t*>(&value), 4});
  EXPECT_EQ(t.view.as<float>()[2], 2.5f);
  float back = 0;
  device->copy_to_host({reinterpret_cast<uint8_t*>(&back), 4}, t.view.data + 8);
  EXPECT_EQ(back, 2.5f);
  EXPECT_GT(device->free_bytes(), 1 << 20);
}

TEST(CpuDevice, CountsWhatIsHeld) {
  const auto device = make_cpu_device();
  EXPECT_EQ(device->allocated_bytes(), 0);
  Buffer large = device->allocate(3 << 20, "a test");
  Tensor small = device->tensor(DType::kF16, {5, 7}, "a test");
  EXPECT_EQ(device->allocated_bytes(), (3 << 20) + 70);
  const Buffer shared = large;
  large = {};
  EXPECT_EQ(device->allocated_bytes(), (3 << 20) + 70) << "somebody still has it";
  small = {};
  EXPECT_EQ(device->allocated_bytes(), 3 << 20);
}

TEST(CpuDevice, WorkIsDoneWhenItsCallReturns) {
  const auto device = make_cpu_device();
  const Buffer a = device->allocate_host(16, "test");
  const Buffer b = device->allocate(16, "test");
  const auto begin = device->make_event();
  const auto end = device->make_event();
  begin->record();
  std::fill_n(a.data(), 16, uint8_t{7});
  device->enqueue_copy_in(b.data(), {a.data(), 8});
  device->enqueue_copy(b.data() + 8, b.data() + 4, 4);
  device->enqueue_copy_out({a.data(), 16}, b.data());
  end->record();
  EXPECT_EQ(std::count(a.data(), a.data() + 16, 7), 12);
  EXPECT_TRUE(end->done());
  EXPECT_GE(end->ms_since(*begin), 0);
  EXPECT_LE(begin->ms_since(*end), 0);
  EXPECT_FALSE(device->asynchronous());
  device->capture(1, [] { FAIL() << "captured work does not run"; });
  EXPECT_FALSE(device->replay(1));
  EXPECT_EQ(device->weight_dtype(DType::kQ4_1), DType::kQ4_1);
}

// The halves nearest to the fp32 noise of the same seed.
TEST(CpuDevice, NoiseIsRounded) {
  const auto device = make_cpu_device();
  constexpr int64_t kCount = 20000;
  const Tensor wide = device->tensor(DType::kF32, {kCount}, "test");
  const Tensor half = device->tensor(DType::kF16, {kCount}, "test");
  const Tensor brain = device->tensor(DType::kBF16, {kCount}, "test");
  for (const float deviation : {0.02f, 20000.0f}) {
    for (const Tensor* t : {&wide, &half, &brain}) device->fill_normal(t->view, deviation, 5);
    for (int64_t i = 0; i < kCount; ++i) {
      const float x = wide.view.as<float>()[i];
      const int bits = half.view.as<uint16_t>()[i];
      const float sign = (bits & 0x8000) != 0 ? -1.0f : 1.0f;
      const float value =
          sign * std::ldexp(static_cast<float>(1024 + (bits & 1023)), (bits >> 10 & 31) - 25);
      if (std::abs(x) >= 65520) {
        ASSERT_EQ(bits & 0x7fff, 0x7c00);
      } else if (std::abs(x) < 0x1p-14f) {
        ASSERT_LE(
            std::abs(sign * std::ldexp(static_cast<float>(bits & 0x7fff), -24) - x), 0x1p-25f);
      } else {
        ASSERT_LE(std::abs(value - x), std::abs(x) * 0x1p-11f) << x;
      }
      const uint32_t word = uint32_t{brain.view.as<uint16_t>()[i]} << 16;
      ASSERT_LE(std::abs(std::bit_cast<float>(word) - x), std::abs(x) * 0x1p-8f) << x;
    }
  }
}

TEST(CpuDevice, RefusalNamesTheThing) {
  const auto device = make_cpu_device();
  try {
    device->allocate(int64_t{1} << 62, "the KV cache");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::kOutOfMemory);
    EXPECT_NE(std::string(error.what()).find("the KV cache"), std::string::npos);
  }
}

}  // namespace
}  // namespace millrace
