// What only the CPU's backend has: the loops under its verbs, and its checks.
#include <gtest/gtest.h>

#include "engine/kernels/cpu/philox.h"
#include "tests/engine/kernels/cpu_backend.h"
#include "tests/engine/kernels/paged_batch.h"

namespace millrace {
namespace {

using reference::Random;
using reference::Weights;

// kat_vectors of the authors' Random123.
TEST(PhiloxTest, KnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
      (PhiloxBlock{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
      (PhiloxBlock{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
      (PhiloxBlock{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

class CpuKernelsTest : public testing::TestWithParam<const CpuKernels*> {
 protected:
  Random random_{7};
};

TEST_P(CpuKernelsTest, UnpacksExactly) {
  for (const DType dtype : reference::kWeightTypes) {
    for (const int64_t k : {1, 5, 31, 33, 64, 96, 1536}) {
      if (k % dtype_info(dtype).block_size != 0) continue;
      const Weights w = random_.weights(dtype, 3, k);
      std::vector<float> got(static_cast<size_t>(k) + 1);
      for (int64_t r = 0; r < 3; ++r) {
        got.back() = -77;
        if (is_quantized(dtype)) {
          widen_blocks(w.row(r), dtype, k, got.data());
        } else {
          GetParam()->widen(w.row(r), dtype, k, got.data());
        }
        for (int64_t i = 0; i < k; ++i) {
          const auto want = static_cast<float>(reference::weight_value(w.row(r), dtype, i));
          ASSERT_EQ(got[static_cast<size_t>(i)], want) << dtype_info(dtype).name << " at " << i;
        }
        ASSERT_EQ(got.back(), -77);
      }
    }
  }
}

TEST_P(CpuKernelsTest, EveryHalfUnpacksToItsValue) {
  std::vector<uint16_t> halves(32);
  std::vector<float> got(32);
  for (int base = 0; base < 0x10000; base += 32) {
    for (int i = 0; i < 32; ++i) halves[static_cast<size_t>(i)] = static_cast<uint16_t>(base + i);
    const auto* row = reinterpret_cast<const uint8_t*>(halves.data());
    GetParam()->widen(row, DType::kF16, 32, got.data());
    for (size_t i = 0; i < 32; ++i) {
      if ((halves[i] & 0x7c00) == 0x7c00) {
        ASSERT_FALSE(std::isfinite(got[i]));
      } else {
        ASSERT_EQ(got[i], static_cast<float>(reference::half_value(row + 2 * i))) << halves[i];
      }
    }
  }
}

TEST_P(CpuKernelsTest, ExpIsAccurate) {
  std::vector<float> x;
  for (int i = 0; i < 20000; ++i) x.push_back(static_cast<float>(i) * -0.0043f);
  std::vector<float> w(x.size());
  const double total =
      GetParam()->scaled_exp(x.data(), static_cast<int64_t>(x.size()), 0, 1, nullptr, w.data());
  double want_total = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = std::exp(double{x[i]});
    want_total += want;
    ASSERT_NEAR(w[i] / want, 1, 2e-7) << x[i];
  }
  ASSERT_EQ(w[0], 1.0f);
  ASSERT_NEAR(total / want_total, 1, 1e-6);
  const float edges[] = {-88, -1000, -std::numeric_limits<float>::infinity(), 0};
  GetParam()->scaled_exp(edges, 4, 0, 1, nullptr, w.data());
  EXPECT_EQ(w[0], 0.0f);
  EXPECT_EQ(w[1], 0.0f);
  EXPECT_EQ(w[2], 0.0f);
  EXPECT_EQ(w[3], 1.0f);
}

TEST_P(CpuKernelsTest, FiniteMaxSeesEveryElement) {
  for (const int64_t n : {1, 3, 16, 33, 257}) {
    std::vector<float> x(static_cast<size_t>(n), -5.0f);
    for (size_t i = 0; i < x.size(); ++i) {
      float max = 0;
      x[i] = 3;
      ASSERT_TRUE(GetParam()->finite_max(x.data(), n, &max));
      ASSERT_EQ(max, 3.0f);
      for (const float bad : {NAN, INFINITY, -INFINITY}) {
        x[i] = bad;
        ASSERT_FALSE(GetParam()->finite_max(x.data(), n, &max)) << bad << " at " << i;
      }
      x[i] = -5;
    }
  }
}

TEST(WidenRowsTest, TakesStridedRowsAndVectors) {
  Random random(3);
  Weights w = random.weights(DType::kQ8_0, 4, 96);
  const TensorView part = TensorView(w.bytes.data(), DType::kQ8_0, {4, 96}).slice_cols(32, 64);
  std::vector<float> got(4 * 64);
  widen_rows(part, got.data());
  for (int64_t r = 0; r < 4; ++r) {
    for (int64_t i = 0; i < 64; ++i) {
      ASSERT_EQ(double{got[static_cast<size_t>(r * 64 + i)]},
          reference::weight_value(part.row(r), DType::kQ8_0, i));
    }
  }
  const TensorView flat(w.bytes.data(), DType::kQ8_0, {96});
  widen_rows(flat, got.data());
  ASSERT_EQ(double{got[95]}, reference::weight_value(w.row(0), DType::kQ8_0, 95));
}

INSTANTIATE_TEST_SUITE_P(Levels, CpuKernelsTest, testing::ValuesIn(cpu_kernel_levels()),
    [](const auto& info) { return std::string(info.param->name); });

void run_step(const TestStep& step) {
  const auto backend = make_cpu_backend(*cpu_kernel_levels().front());
  const auto ops = backend->make_ops();
  StepMemory memory(*backend, 4, 63, 4, 16, 0);
  memory.begin(*ops, memory.upload(step), {4, 2, 64, 0.125f, 0});
}

TEST(CpuStepDeathTest, IndicesOutOfRangeAreBugs) {
  TestStep good;
  good.admissions = {{3, 2, std::vector<int32_t>(64), {}}};
  good.new_blocks = {{3, 3, 1}};
  good.arrivals = {{3, 63, 0}};
  good.rows = {{3, 0, 64, true}};
  run_step(good);
  const auto dies = [&](auto change, const char* message) {
    TestStep bad = good;
    change(bad);
    EXPECT_DEATH(run_step(bad), message);
  };
  dies([](TestStep& s) { s.admissions[0].slot = 4; }, "slot 4 of 4");
  dies([](TestStep& s) { s.admissions[0].ids.resize(65); }, "num_ids");
  dies([](TestStep& s) { s.new_blocks[0][1] = 4; }, "index 4 of 4");
  dies([](TestStep& s) { s.new_blocks[0][0] = -1; }, "slot -1 of 4");
  dies([](TestStep& s) { s.arrivals[0][1] = 64; }, "index 64 of 64");
  dies([](TestStep& s) { s.rows[0].first = 1; }, "index 64 of 64");
  dies([](TestStep& s) { s.rows[0].slot = 5; }, "slot 5 of 4");
  dies([](TestStep& s) { s.rows[0].count = 0; }, "row 0 has 0 tokens");
}

}  // namespace
}  // namespace millrace
