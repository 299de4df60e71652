// Views, buffers and the CPU device.
#include <gtest/gtest.h>

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
  device->copy_to_device(t.buffer, 8, {reinterpret_cast<const uint8_t*>(&value), 4});
  float back = 0;
  device->copy_to_host({reinterpret_cast<uint8_t*>(&back), 4}, t.buffer, 8);
  EXPECT_EQ(back, 2.5f);
  EXPECT_GT(device->free_bytes(), 1 << 20);
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
