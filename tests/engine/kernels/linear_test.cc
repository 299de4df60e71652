#include <gtest/gtest.h>

#include "tests/engine/kernels/reference.h"

namespace millrace {
namespace {

using reference::Random;

class LinearTest : public testing::TestWithParam<const CpuKernels*> {
 protected:
  ThreadPool pool_{2};
  std::unique_ptr<Ops> ops_ = make_cpu_ops_for(pool_, *GetParam());
  Random random_{7};
};

struct Shape {
  int64_t m, n, k;
};

TEST_P(LinearTest, MatchesReferenceForEveryTypeAndShape) {
  const Shape shapes[] = {{1, 1, 32}, {1, 5, 64}, {2, 3, 96}, {3, 7, 576}, {4, 64, 64}, {5, 6, 32},
      {6, 4, 1536}, {7, 130, 96}, {37, 9, 64}, {200, 5, 64}, {1, 200, 576}, {11, 67, 160},
      {1, 3, 1}, {5, 5, 17}, {2, 9, 33}, {8, 3, 100}, {1, 6, 63}};
  for (const DType dtype : reference::kWeightTypes) {
    for (const auto& [m, n, k] : shapes) {
      if (k % dtype_info(dtype).block_size != 0) continue;
      const Tensor x = random_.rows(m, k);
      const Tensor w = random_.weights(dtype, n, k);
      const Tensor bias = random_.vector(n);
      const Tensor out = random_.rows(m, n);
      for (const bool with_bias : {false, true}) {
        ops_->linear(x.view, w.view, with_bias ? bias.view : TensorView(), out.view);
        for (int64_t i = 0; i < m; ++i) {
          for (int64_t j = 0; j < n; ++j) {
            const reference::Dot want = reference::dot(x.view.row_as<float>(i), w.view, j);
            const double offset = with_bias ? double{bias.view.as<float>()[j]} : 0.0;
            ASSERT_NEAR(out.view.row_as<float>(i)[j], want.value + offset,
                1e-6 * (want.magnitude + std::abs(offset)) + 1e-30)
                << dtype_info(dtype).name << " m " << m << " n " << n << " k " << k << " at " << i
                << "," << j;
          }
        }
      }
    }
  }
}

TEST_P(LinearTest, StridedRowsTouchNothingElse) {
  for (const int64_t m : {1, 3, 9}) {
    const Tensor wide_x = random_.rows(m, 200);
    const Tensor wide_out = random_.rows(m, 100);
    std::fill_n(wide_out.view.as<float>(), wide_out.view.count(), -77.0f);
    const Tensor w = random_.weights(DType::kQ4_1, 30, 64);
    const TensorView x = wide_x.view.slice_cols(31, 64);
    ops_->linear(x, w.view, TensorView(), wide_out.view.slice_cols(40, 30));
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < 100; ++j) {
        const float got = wide_out.view.row_as<float>(i)[j];
        if (j < 40 || j >= 70) {
          ASSERT_EQ(got, -77.0f) << i << "," << j;
        } else {
          const reference::Dot want = reference::dot(x.row_as<float>(i), w.view, j - 40);
          ASSERT_NEAR(got, want.value, 1e-6 * want.magnitude);
        }
      }
    }
  }
}

TEST_P(LinearTest, UnpacksExactly) {
  for (const DType dtype : reference::kWeightTypes) {
    for (const int64_t k : {1, 5, 31, 33, 64, 96, 1536}) {
      if (k % dtype_info(dtype).block_size != 0) continue;
      const Tensor w = random_.weights(dtype, 3, k);
      std::vector<float> got(static_cast<size_t>(k) + 1);
      for (int64_t r = 0; r < 3; ++r) {
        got.back() = -77;
        GetParam()->widen(w.view.row(r), dtype, k, got.data());
        for (int64_t i = 0; i < k; ++i) {
          const auto want = static_cast<float>(reference::weight_value(w.view.row(r), dtype, i));
          ASSERT_EQ(got[static_cast<size_t>(i)], want) << dtype_info(dtype).name << " at " << i;
        }
        ASSERT_EQ(got.back(), -77);
      }
    }
  }
}

TEST_P(LinearTest, EveryHalfUnpacksToItsValue) {
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

TEST_P(LinearTest, EmbedTakesItsRowsAndZerosOthers) {
  for (const DType dtype : reference::kWeightTypes) {
    const Tensor table = random_.weights(dtype, 10, 64);
    const std::vector<int32_t> ids = {100, 109, 99, 110, 105, 0};
    const Tensor out = random_.rows(6, 64);
    ops_->embed(ids, 100, table.view, out.view);
    for (size_t t = 0; t < ids.size(); ++t) {
      const int32_t row = ids[t] - 100;
      for (int64_t i = 0; i < 64; ++i) {
        const double want =
            row < 0 || row >= 10 ? 0.0 : reference::weight_value(table.view.row(row), dtype, i);
        ASSERT_EQ(out.view.row_as<float>(static_cast<int64_t>(t))[i], static_cast<float>(want));
      }
    }
  }
}

TEST(WidenRowsTest, TakesStridedRowsAndVectors) {
  Random random(3);
  const Tensor w = random.weights(DType::kQ8_0, 4, 96);
  const TensorView part = w.view.slice_cols(32, 64);
  std::vector<float> got(4 * 64);
  widen_rows(part, got.data());
  for (int64_t r = 0; r < 4; ++r) {
    for (int64_t i = 0; i < 64; ++i) {
      ASSERT_EQ(double{got[static_cast<size_t>(r * 64 + i)]},
          reference::weight_value(part.row(r), DType::kQ8_0, i));
    }
  }
  const TensorView flat(w.view.row(0), DType::kQ8_0, {96});
  widen_rows(flat, got.data());
  ASSERT_EQ(double{got[95]}, reference::weight_value(w.view.row(0), DType::kQ8_0, 95));
}

INSTANTIATE_TEST_SUITE_P(Levels, LinearTest, testing::ValuesIn(cpu_kernel_levels()),
    [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace millrace
