#include <gtest/gtest.h>

#include <numeric>

#include "tests/engine/kernels/reference.h"

namespace millrace {
namespace {

using reference::Random;

class RowsTest : public testing::TestWithParam<const CpuKernels*> {
 protected:
  ThreadPool pool_{2};
  std::unique_ptr<Ops> ops_ = make_cpu_ops_for(pool_, *GetParam());
  Random random_{11};
};

TEST_P(RowsTest, RmsNormAlsoInPlace) {
  for (const int64_t width : {1, 15, 16, 17, 100, 576}) {
    for (const int64_t rows : {1, 40}) {
      const Tensor x = random_.rows(rows, width);
      const Tensor out = random_.rows(rows, width);
      const Tensor weight = random_.vector(width);
      ops_->rms_norm(x.view, weight.view, 1e-5f, out.view);
      for (int64_t t = 0; t < rows; ++t) {
        const auto want =
            reference::rms_norm(x.view.row_as<float>(t), weight.view.as<float>(), 1e-5, width);
        for (int64_t i = 0; i < width; ++i) {
          const double w = want[static_cast<size_t>(i)];
          ASSERT_NEAR(out.view.row_as<float>(t)[i], w, 1e-6 * std::abs(w)) << width;
        }
      }
      ops_->rms_norm(x.view, weight.view, 1e-5f, x.view);
      ASSERT_EQ(std::memcmp(x.view.data, out.view.data, static_cast<size_t>(rows * width * 4)), 0);
    }
  }
}

TEST_P(RowsTest, AddRmsNormUpdatesTheResidual) {
  const Tensor x = random_.rows(5, 90);
  const Tensor residual = random_.rows(5, 90);
  const Tensor sum = random_.rows(5, 90);
  const Tensor out = random_.rows(5, 90);
  const Tensor weight = random_.vector(90);
  std::memcpy(sum.view.data, residual.view.data, 5 * 90 * 4);
  ops_->add(sum.view, x.view);
  for (int64_t i = 0; i < 5 * 90; ++i) {
    ASSERT_EQ(sum.view.as<float>()[i], residual.view.as<float>()[i] + x.view.as<float>()[i]);
  }
  ops_->add_rms_norm(x.view, residual.view, weight.view, 1e-6f, out.view);
  ASSERT_EQ(std::memcmp(sum.view.data, residual.view.data, 5 * 90 * 4), 0);
  for (int64_t t = 0; t < 5; ++t) {
    const auto want =
        reference::rms_norm(sum.view.row_as<float>(t), weight.view.as<float>(), 1e-6, 90);
    for (int64_t i = 0; i < 90; ++i) {
      const double w = want[static_cast<size_t>(i)];
      ASSERT_NEAR(out.view.row_as<float>(t)[i], w, 1e-6 * std::abs(w));
    }
  }
}

TEST_P(RowsTest, SiluMulOverItsWholeRange) {
  const int64_t width = 1003;
  const Tensor both = random_.rows(3, 2 * width);
  const TensorView gate = both.view.slice_cols(0, width);
  const TensorView up = both.view.slice_cols(width, width);
  for (int64_t i = 0; i < width; ++i) {
    gate.row_as<float>(1)[i] = static_cast<float>(i - 500);
    gate.row_as<float>(2)[i] = static_cast<float>(i - 500) * 0.02f;
  }
  const Tensor out = random_.rows(3, width);
  ops_->silu_mul(gate, up, out.view);
  for (int64_t t = 0; t < 3; ++t) {
    for (int64_t i = 0; i < width; ++i) {
      const double u = up.row_as<float>(t)[i];
      const double want = reference::silu_mul(gate.row_as<float>(t)[i], u);
      ASSERT_NEAR(out.view.row_as<float>(t)[i], want, 5e-7 * std::abs(want) + 1e-34) << i;
    }
  }
  gate.row_as<float>(0)[17] = NAN;  // must show, so that sampling can refuse the row
  ops_->silu_mul(gate, up, out.view);
  ASSERT_TRUE(std::isnan(out.view.as<float>()[17]));
}

TEST_P(RowsTest, ExpIsAccurate) {
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

TEST_P(RowsTest, FiniteMaxSeesEveryElement) {
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

TEST_P(RowsTest, GatherRows) {
  const Tensor x = random_.rows(9, 33);
  const std::vector<int32_t> rows = {8, 0, 8, 3};
  const Tensor out = random_.rows(4, 33);
  ops_->gather_rows(x.view, rows, out.view);
  for (int64_t i = 0; i < 4; ++i) {
    ASSERT_EQ(std::memcmp(out.view.row(i), x.view.row(rows[static_cast<size_t>(i)]), 33 * 4), 0);
  }
}

TEST_P(RowsTest, RopeRotatesAndWritesTheCache) {
  for (const int32_t dim : {16, 64, 80, 128}) {
    for (const bool interleaved : {false, true}) {
      for (const int32_t block_size : {16, 64}) {
        const AttentionShape shape{6, 2, dim, 1.0f, 0};
        reference::PagedBatch batch(random_, {70, 3, 40}, {70, 1, 5}, shape, block_size);
        RopeTable rope{random_.rows(80, dim), interleaved};
        const int64_t tokens = batch.view.num_tokens;
        const Tensor qkv = random_.rows(tokens, 10 * dim);  // as a fused projection leaves them
        const Tensor before = random_.rows(tokens, 10 * dim);
        std::memcpy(before.view.data, qkv.view.data, static_cast<size_t>(tokens * 40 * dim));
        ops_->rope_kv_write(qkv.view.slice_cols(0, 6 * dim), qkv.view.slice_cols(6 * dim, 2 * dim),
            qkv.view.slice_cols(8 * dim, 2 * dim), rope, shape, batch.view, batch.cache());
        for (size_t s = 0; s < 3; ++s) {
          for (int32_t t = batch.cu_tokens[s]; t < batch.cu_tokens[s + 1]; ++t) {
            const int32_t p = batch.positions[static_cast<size_t>(t)];
            const auto* angles = rope.cos_sin.view.row_as<float>(p);
            for (int32_t h = 0; h < 10; ++h) {
              const float* from = before.view.row_as<float>(t) + h * dim;
              const auto turned = reference::rope(from, angles, dim, interleaved);
              const float* got = h < 6   ? qkv.view.row_as<float>(t) + h * dim
                                 : h < 8 ? batch.slot(batch.k, s, h - 6, p)
                                         : batch.slot(batch.v, s, h - 8, p);
              for (int32_t d = 0; d < dim; ++d) {
                const double want = h < 8 ? turned[static_cast<size_t>(d)] : double{from[d]};
                ASSERT_NEAR(got[d], want, 2e-6) << "head " << h << " dim " << d;
              }
            }
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Levels, RowsTest, testing::ValuesIn(cpu_kernel_levels()),
    [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace millrace
