// The device under each backend.
#include <gtest/gtest.h>

#include "tests/engine/kernels/backend.h"

namespace millrace {
namespace {

using reference::Matrix;

using DeviceTest = BackendTest;

TEST_P(DeviceTest, CopiesInOrder) {
  Device& device = backend_->device();
  const int64_t bytes = 3 << 20;
  const Buffer host = device.allocate_host(bytes, "test");
  const Buffer back = device.allocate_host(bytes, "test");
  const Buffer a = device.allocate(bytes, "test");
  const Buffer b = device.allocate(bytes, "test");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a.data()) % 64, 0u);
  const auto zeros = backend_->download<uint8_t>(a.data(), static_cast<size_t>(bytes));
  EXPECT_EQ(std::count(zeros.begin(), zeros.end(), 0), bytes);
  for (int64_t i = 0; i < bytes; ++i) host.data()[i] = static_cast<uint8_t>(random_.below(256));
  const auto size = static_cast<size_t>(bytes);
  const auto begin = device.make_event();
  const auto end = device.make_event();
  begin->record();
  device.enqueue_copy_in(a.data(), {host.data(), size});
  device.enqueue_copy(b.data(), a.data(), bytes);
  device.enqueue_copy_out({back.data(), size}, b.data());
  end->record();
  device.synchronize();
  EXPECT_TRUE(begin->done());
  EXPECT_TRUE(end->done());
  EXPECT_GE(end->ms_since(*begin), 0);
  EXPECT_EQ(std::memcmp(host.data(), back.data(), size), 0);
  EXPECT_GT(device.free_bytes(), 1 << 20);
  EXPECT_GE(device.allocated_bytes(), 2 * bytes);
  EXPECT_GE(device.used_bytes(), device.asynchronous() ? bytes : 0);
}

// As a loader has it: one band is written while the other is on its way.
TEST_P(DeviceTest, BegunCopiesReadTheirBandUntilTheyEnd) {
  Device& device = backend_->device();
  constexpr size_t kBand = 1 << 20, kBands = 20;
  const Buffer bands[2] = {
      device.allocate_host(kBand, "test"), device.allocate_host(kBand, "test")};
  const Buffer to = device.allocate(kBand * kBands, "test");
  for (size_t i = 0; i < kBands; ++i) {
    std::memset(bands[i % 2].data(), static_cast<int>(i + 1), kBand);
    device.end_copies();
    device.begin_copy(to.data() + i * kBand, {bands[i % 2].data(), kBand});
  }
  device.end_copies();
  const auto got = backend_->download<uint8_t>(to.data(), kBand * kBands);
  for (size_t i = 0; i < got.size(); ++i) ASSERT_EQ(got[i], i / kBand + 1) << i;
}

TEST_P(DeviceTest, NormalNoiseIsAFunctionOfSeedAndIndex) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    if (!backend_->holds(dtype)) continue;
    const Tensor t = backend_->device().tensor(dtype, {301, 333}, "test");
    const Tensor part = backend_->device().tensor(dtype, {7, 11}, "test");
    backend_->device().fill_normal(t.view, 0.5f, 42);
    backend_->device().fill_normal(part.view, 0.5f, 42);
    const Matrix all = backend_->download(t);
    const Matrix begin = backend_->download(part);
    EXPECT_TRUE(std::equal(begin.values.begin(), begin.values.end(), all.values.begin()));
    double sums[5] = {};
    const auto n = static_cast<double>(all.values.size());
    for (const float value : all.values) {
      const double x = double{value} / 0.5;
      for (int i = 1; i < 5; ++i) sums[i] += std::pow(x, i) / n;
    }
    EXPECT_NEAR(sums[1], 0, 0.02);
    EXPECT_NEAR(sums[2], 1, 0.03);
    EXPECT_NEAR(sums[3], 0, 0.08);
    EXPECT_NEAR(sums[4], 3, 0.2);
    backend_->device().fill_normal(part.view, 0.5f, 43);
    EXPECT_NE(backend_->download(part).values, begin.values);
  }
}

TEST_P(DeviceTest, GraphsRunWhenReplayed) {
  Device& device = backend_->device();
  const Tensor x = backend_->upload(Matrix(4, 64, 1));
  const Tensor y = backend_->upload(Matrix(4, 64, 2));
  const auto value = [&] { return backend_->download(x).values[100]; };
  EXPECT_FALSE(device.replay(7));
  ops_->add(y.view, x.view);  // once outside, as warm-up does
  device.synchronize();
  device.capture(7, [&] { ops_->add(x.view, y.view); });
  EXPECT_EQ(value(), 1);
  const float replays = device.replay(7) && device.replay(7) ? 2 : 0;
  EXPECT_EQ(replays > 0, device.asynchronous());
  EXPECT_EQ(value(), 1 + 3 * replays);
}

TEST_P(DeviceTest, MemoryThatIsNotThereIsRefusedByName) {
  EXPECT_THROW(
      {
        try {
          backend_->device().allocate(int64_t{1} << 62, "the KV cache");
        } catch (const std::exception& error) {
          EXPECT_NE(std::string(error.what()).find("the KV cache"), std::string::npos);
          throw;
        }
      },
      std::exception);
  // The device still works.
  EXPECT_EQ(backend_->download(backend_->upload(Matrix(3, 3, 1))).values[8], 1);
}

MILLRACE_ON_ALL_BACKENDS(DeviceTest);

}  // namespace
}  // namespace millrace
