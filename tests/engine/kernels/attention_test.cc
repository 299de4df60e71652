#include <gtest/gtest.h>

#include "tests/engine/kernels/reference.h"

namespace millrace {
namespace {

using reference::PagedBatch;
using reference::Random;

class AttentionTest : public testing::TestWithParam<const CpuKernels*> {
 protected:
  void check(const PagedBatch& batch, const AttentionShape& shape) {
    const int64_t width = int64_t{shape.num_heads} * shape.head_dim;
    const Tensor wide = random_.rows(batch.view.num_tokens, width + 24);
    const TensorView q = wide.view.slice_cols(8, width);
    const Tensor out = random_.rows(batch.view.num_tokens, width);
    ops_->attention(q, batch.cache(), shape, batch.view, out.view);
    for (size_t s = 0; s + 1 < batch.cu_tokens.size(); ++s) {
      for (int32_t t = batch.cu_tokens[s]; t < batch.cu_tokens[s + 1]; ++t) {
        for (int32_t h = 0; h < shape.num_heads; ++h) {
          const auto want =
              reference::attention(batch, shape, q.row_as<float>(t) + h * shape.head_dim, s, h,
                  batch.positions[static_cast<size_t>(t)]);
          const float* got = out.view.row_as<float>(t) + h * shape.head_dim;
          for (int32_t d = 0; d < shape.head_dim; ++d) {
            ASSERT_NEAR(got[d], want[static_cast<size_t>(d)], 4e-6)
                << "sequence " << s << " row " << t << " head " << h << " dim " << d << " of "
                << shape.head_dim << " window " << shape.window;
          }
        }
      }
    }
  }

  ThreadPool pool_{2};
  std::unique_ptr<Ops> ops_ = make_cpu_ops_for(pool_, *GetParam());
  Random random_{5};
};

TEST_P(AttentionTest, HeadSizesGroupsAndBlocks) {
  const std::pair<int32_t, int32_t> heads[] = {{1, 1}, {4, 4}, {6, 2}, {8, 2}, {7, 1}, {5, 1}};
  for (const int32_t dim : {16, 24, 64, 80, 128}) {
    for (const auto& [num_heads, num_kv_heads] : heads) {
      for (const int32_t block_size : {16, 32, 64}) {
        const AttentionShape shape{
            num_heads, num_kv_heads, dim, 1.0f / std::sqrt(static_cast<float>(dim)), 0};
        const PagedBatch batch(random_, {1, 37, 64, 33, 100}, {1, 37, 1, 2, 20}, shape, block_size);
        check(batch, shape);
      }
    }
  }
}

TEST_P(AttentionTest, SlidingWindow) {
  for (const int32_t window : {1, 2, 15, 16, 17, 32, 33, 100, 1000}) {
    for (const int32_t block_size : {16, 64}) {
      const AttentionShape shape{3, 1, 16, 0.3f, window};
      const PagedBatch batch(random_, {150, 90, 5}, {40, 1, 5}, shape, block_size);
      check(batch, shape);
    }
  }
}

TEST_P(AttentionTest, LargeScoresDoNotOverflow) {
  const AttentionShape shape{2, 1, 64, 60.0f, 0};
  const PagedBatch batch(random_, {70}, {3}, shape, 16);
  const Tensor q = random_.rows(3, 128);
  const Tensor out = random_.rows(3, 128);
  ops_->attention(q.view, batch.cache(), shape, batch.view, out.view);
  for (int64_t i = 0; i < 3 * 128; ++i) ASSERT_LT(std::abs(out.view.as<float>()[i]), 6.0f);
}

INSTANTIATE_TEST_SUITE_P(Levels, AttentionTest, testing::ValuesIn(cpu_kernel_levels()),
    [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace millrace
