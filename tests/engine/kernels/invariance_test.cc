// A row's bits depend on nothing but the row: not on its company, the threads or the chunks.
#include <gtest/gtest.h>

#include "tests/engine/kernels/cpu_backend.h"
#include "tests/engine/kernels/paged_batch.h"

namespace millrace {
namespace {

using reference::Random;

class InvarianceTest : public testing::TestWithParam<const CpuKernels*> {
 protected:
  // The verbs with 1, 2 and 3 threads.
  template <typename Body>
  void for_threads(const Body& body) {
    for (const int threads : {1, 2, 3}) {
      ThreadPool pool(threads);
      const std::unique_ptr<Ops> ops = make_cpu_ops_for(pool, *GetParam());
      body(*ops);
    }
  }
  static void expect_same_rows(const TensorView& a, const TensorView& b) {
    ASSERT_EQ(a.rows(), b.rows());
    for (int64_t i = 0; i < a.rows(); ++i) {
      ASSERT_EQ(std::memcmp(a.row(i), b.row(i), static_cast<size_t>(a.cols()) * 4), 0) << i;
    }
  }
  // The same keys and values in every layout of blocks.
  static void fill_alike(PagedBatch& batch, const AttentionShape& shape, int32_t length) {
    Random same(99);
    for (int32_t p = 0; p < length; ++p) {
      for (int32_t i = 0; i < shape.num_kv_heads * shape.head_dim; ++i) {
        const int32_t head = i / shape.head_dim;
        batch.slot(batch.k, 0, head, p)[i % shape.head_dim] = same.normal();
        batch.slot(batch.v, 0, head, p)[i % shape.head_dim] = same.normal();
      }
    }
    batch.upload_cache();
  }
  Tensor rows(int64_t n, int64_t cols) { return backend_->upload(random_.matrix(n, cols)); }

  std::unique_ptr<TestBackend> backend_ = make_cpu_backend(*GetParam());
  std::unique_ptr<Ops> ops_ = backend_->make_ops();
  Random random_{23};
};

TEST_P(InvarianceTest, Linear) {
  for (const DType dtype : reference::kWeightTypes) {
    for (const int64_t k : {576, 1536, 83, 256}) {
      if (k % dtype_info(dtype).block_size != 0) continue;
      const Tensor x = rows(37, k);
      const reference::Weights stored = random_.weights(dtype, 150, k);
      const Tensor w = backend_->upload(stored);
      reference::Weights shard{dtype, 61, k, {stored.row(50), stored.row(111)}};
      const Tensor shard_w = backend_->upload(shard);
      const Tensor alone = rows(37, 150);
      const Tensor got = rows(37, 150);
      bool first_ops = true;
      for_threads([&](Ops& ops) {
        for (int64_t i = 0; i < 37; ++i) {
          ops.linear(x.view.slice_rows(i, 1), w.view, TensorView(), got.view.slice_rows(i, 1));
        }
        if (first_ops) std::memcpy(alone.view.data, got.view.data, 37 * 150 * 4);
        first_ops = false;
        expect_same_rows(alone.view, got.view);
        for (int64_t m = 1; m <= 37; ++m) {
          const int64_t first = (37 - m) / 2;
          const TensorView out = got.view.slice_rows(first, m);
          std::memset(out.row(0), 0xff, static_cast<size_t>(m * 150 * 4));
          ops.linear(x.view.slice_rows(first, m), w.view, TensorView(), out);
          expect_same_rows(alone.view.slice_rows(first, m), out);
        }
        // A rank that holds some of the outputs computes them alike.
        const Tensor part = rows(37, 61);
        ops.linear(x.view, shard_w.view, TensorView(), part.view);
        expect_same_rows(alone.view.slice_cols(50, 61), part.view);
      });
    }
  }
}

TEST_P(InvarianceTest, PrefillInChunksWholeAndTokenByToken) {
  const int32_t length = 101;
  for (const int32_t window : {0, 40}) {
    for (const int32_t dim : {64, 80}) {
      const AttentionShape shape{6, 2, dim, 0.125f, window};
      const Tensor q = rows(length, 6 * dim);
      const Tensor want = rows(length, 6 * dim);
      const Tensor got = rows(length, 6 * dim);
      bool first = true;
      for (const int32_t block_size : {16, 32, 64}) {
        PagedBatch batch(*backend_, *ops_, random_, {length}, {length}, shape, block_size);
        fill_alike(batch, shape, length);
        for_threads([&](Ops& ops) {
          for (const int32_t chunk : {length, 1, 7, 16, 33, 64}) {
            for (int32_t begin = 0; begin < length; begin += chunk) {
              const int32_t n = std::min(chunk, length - begin);
              const std::vector<int32_t> cu = {0, n};
              BatchView view = batch.view;
              view.num_tokens = n;
              view.cu_tokens = cu;
              view.positions =
                  view.positions.subspan(static_cast<size_t>(begin), static_cast<size_t>(n));
              ops.attention(q.view.slice_rows(begin, n), batch.cache(), shape, view,
                  got.view.slice_rows(begin, n));
            }
            if (first) std::memcpy(want.view.data, got.view.data, want.buffer.bytes());
            first = false;
            expect_same_rows(want.view, got.view);
          }
        });
      }
    }
  }
}

TEST_P(InvarianceTest, AttentionInCompany) {
  const AttentionShape shape{9, 3, 64, 0.125f, 0};
  const PagedBatch batch(*backend_, *ops_, random_, {50, 1, 200, 77}, {20, 1, 1, 77}, shape, 16);
  const Tensor q = rows(99, 576);
  const Tensor together = rows(99, 576);
  const Tensor alone = rows(99, 576);
  for_threads([&](Ops& ops) {
    ops.attention(q.view, batch.cache(), shape, batch.view, together.view);
    for (size_t s = 0; s < 4; ++s) {
      const int32_t begin = batch.cu_tokens[s];
      const int32_t n = batch.cu_tokens[s + 1] - begin;
      const std::vector<int32_t> cu = {0, n};
      const BatchView view{n, 16, cu,
          batch.view.positions.subspan(static_cast<size_t>(begin), static_cast<size_t>(n)),
          batch.view.block_tables.subspan(s, 1)};
      ops.attention(
          q.view.slice_rows(begin, n), batch.cache(), shape, view, alone.view.slice_rows(begin, n));
    }
    expect_same_rows(alone.view, together.view);
  });
}

TEST_P(InvarianceTest, RowVerbs) {
  const Tensor x = rows(37, 575);
  const Tensor y = rows(37, 575);
  const Tensor weight = backend_->upload_vector(random_.matrix(1, 575), DType::kF32);
  const Tensor want_norm = rows(37, 575);
  const Tensor want_silu = rows(37, 575);
  const Tensor want_gelu = rows(37, 575);
  const Tensor want_normed = rows(37, 575);
  const Tensor want_sum = rows(37, 575);
  std::memcpy(want_sum.view.data, y.view.data, static_cast<size_t>(y.buffer.bytes()));
  const Tensor got = rows(37, 575);
  ThreadPool pool(1);
  const std::unique_ptr<Ops> one = make_cpu_ops_for(pool, *GetParam());
  for (int64_t i = 0; i < 37; ++i) {
    const auto row = [i](const Tensor& t) { return t.view.slice_rows(i, 1); };
    one->rms_norm(row(x), weight.view, 1e-5f, row(want_norm));
    one->gate_mul(row(x), row(y), Activation::kSilu, row(want_silu));
    one->gate_mul(row(x), row(y), Activation::kGeluTanh, row(want_gelu));
    one->norm_add_norm(row(x), weight.view, row(want_sum), weight.view, 1e-5f, row(want_normed));
  }
  for_threads([&](Ops& ops) {
    for (int64_t m = 1; m <= 37; ++m) {
      const auto last = [m](const Tensor& t) { return t.view.slice_rows(37 - m, m); };
      ops.rms_norm(last(x), weight.view, 1e-5f, last(got));
      expect_same_rows(last(want_norm), last(got));
      ops.gate_mul(last(x), last(y), Activation::kSilu, last(got));
      expect_same_rows(last(want_silu), last(got));
      ops.gate_mul(last(x), last(y), Activation::kGeluTanh, last(got));
      expect_same_rows(last(want_gelu), last(got));
      const Tensor sum = rows(37, 575);
      std::memcpy(sum.view.data, y.view.data, static_cast<size_t>(y.buffer.bytes()));
      ops.norm_add_norm(last(x), weight.view, last(sum), weight.view, 1e-5f, last(got));
      expect_same_rows(last(want_sum), last(sum));
      expect_same_rows(last(want_normed), last(got));
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Levels, InvarianceTest, testing::ValuesIn(cpu_kernel_levels()),
    [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace millrace
