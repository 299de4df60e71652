#include <gtest/gtest.h>

#include "tests/engine/kernels/paged_batch.h"

namespace millrace {
namespace {

using reference::Matrix;

class AttentionTest : public BackendTest {
 protected:
  // Query and result of a call, the query cut out of wider rows as a fused projection leaves it.
  struct Call {
    Matrix wide;
    Tensor q, out;
    TensorView query;
  };
  static constexpr int64_t kBefore = 16;
  Call make_call(int64_t tokens, const AttentionShape& shape) {
    const int64_t width = int64_t{shape.num_heads} * shape.head_dim;
    Call call;
    call.wide = noise(tokens, width + 48);
    call.q = backend_->upload(call.wide);
    call.out = output(tokens, width);
    call.query = call.q.view.slice_cols(kBefore, width);
    return call;
  }
  // Row t of the result is sequence s at position p.
  void check_row(const PagedBatch& batch, const Call& call, const Matrix& out, int32_t t, size_t s,
      int32_t p) {
    const AttentionShape& shape = batch.shape;
    // The error of a score in fp32 shows in its weight.
    const double sharpness = backend_->act() == DType::kF32
                                 ? std::max(1.0, shape.scale * std::sqrt(shape.head_dim))
                                 : 1.0;
    for (int32_t h = 0; h < shape.num_heads; ++h) {
      const float* q = call.wide.row(t) + kBefore + h * shape.head_dim;
      const Attended want = reference_attention(batch, q, s, h, p);
      const float* got = out.row(t) + h * shape.head_dim;
      for (size_t d = 0; d < want.out.size(); ++d) {
        // Weights may be rounded like results before they meet the values.
        const double error =
            backend_->is_cpu() ? 4e-6 : backend_->error(want.magnitude[d], want.magnitude[d], 0);
        ASSERT_NEAR(got[d], want.out[d], error * sharpness)
            << "sequence " << s << " position " << p << " head " << h << " of " << shape.num_heads
            << "/" << shape.num_kv_heads << " dim " << d << " of " << shape.head_dim << " window "
            << shape.window << " block size " << batch.block_size;
      }
    }
  }
  // Every `step`-th token and the last of each sequence.
  void check(const std::vector<int32_t>& lengths, const std::vector<int32_t>& counts,
      const AttentionShape& shape, int32_t block_size, int32_t step = 1) {
    ops_ = backend_->make_ops(shape);
    const PagedBatch batch(*backend_, *ops_, random_, lengths, counts, shape, block_size);
    const Call call = make_call(batch.view.num_tokens, shape);
    ops_->attention(call.query, batch.cache(), shape, batch.view, call.out.view);
    const Matrix out = backend_->download(call.out);
    for (const float value : out.values) ASSERT_TRUE(std::isfinite(value));
    for (size_t s = 0; s + 1 < batch.cu_tokens.size(); ++s) {
      const int32_t end = batch.cu_tokens[s + 1];
      for (int32_t t = batch.cu_tokens[s]; t < end; ++t) {
        if ((t - batch.cu_tokens[s]) % step != 0 && t + 1 != end) continue;
        check_row(batch, call, out, t, s, batch.positions[static_cast<size_t>(t)]);
        if (HasFatalFailure()) return;
      }
    }
  }
  static AttentionShape shape(
      int32_t heads, int32_t kv_heads, int32_t dim, float sharpness = 1, int32_t window = 0) {
    return {heads, kv_heads, dim, sharpness / std::sqrt(static_cast<float>(dim)), window};
  }
};

TEST_P(AttentionTest, HeadSizesGroupsAndBlocks) {
  const std::pair<int32_t, int32_t> heads[] = {
      {1, 1}, {3, 3}, {6, 2}, {8, 2}, {8, 1}, {7, 1}, {5, 1}};
  for (const int32_t dim : {16, 24, 64, 80, 96, 128, 256}) {
    if (dim == 24 && !backend_->is_cpu()) continue;
    for (const auto& [num_heads, num_kv_heads] : heads) {
      for (const int32_t block_size : {16, 32, 64}) {
        const AttentionShape s = shape(num_heads, num_kv_heads, dim);
        check({1, 37, 64, 33, 70}, {1, 37, 1, 2, 20}, s, block_size);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Decode first, then prefill: what a busy server's steps are. Scores are sharp, so that a key left
// out or seen too much shows.
TEST_P(AttentionTest, DecodeBesidePrefill) {
  for (const int32_t window : {0, 100}) {
    for (const auto& [dim, block_size] : {std::pair{64, 16}, {128, 64}}) {
      const AttentionShape s = shape(8, 2, dim, 6, window);
      check({1, 1500, 33, 700, 64, 129, 400, 5}, {1, 1, 1, 1, 1, 129, 65, 5}, s, block_size, 7);
      check({1499, 16, 1024}, {1, 1, 1}, s, block_size);
      check({300, 1300, 2}, {300, 150, 1}, s, block_size, 29);
      if (HasFatalFailure()) return;
    }
  }
}

// Few rows far into long prompts: their keys are cut where there is more than one multiprocessor
// for each tile of rows.
TEST_P(AttentionTest, ShortChunksOfLongPrompts) {
  for (const int32_t window : {0, 1700}) {
    for (const auto& s : {shape(8, 2, 64, 4, window), shape(4, 1, 128, 4, window),
             shape(3, 3, 96, 4, window), shape(8, 8, 128, 4, window)}) {
      check({4100, 513, 2050}, {20, 1, 3}, s, 16, 3);
      check({70, 3333, 1100}, {1, 40, 300}, s, 64, 17);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(AttentionTest, LongContextsOfOddShapes) {
  for (const auto& s : {shape(3, 1, 80, 4), shape(8, 1, 96, 4), shape(2, 2, 256, 4),
           shape(4, 1, 16, 4), shape(9, 3, 64, 4, 513)}) {
    check({1217, 31, 800, 1, 257}, {1, 1, 3, 1, 40}, s, 32, 3);
    if (HasFatalFailure()) return;
  }
}

TEST_P(AttentionTest, PrefillOfEveryLength) {
  for (const int32_t n : {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129,
           191, 192, 193, 255, 256, 257, 300}) {
    check({n}, {n}, shape(4, 1, 64, 3), 16, n < 40 ? 1 : 11);
    check({n + 37}, {n}, shape(3, 3, 128, 3), 32, n < 40 ? 1 : 11);
    if (HasFatalFailure()) return;
  }
}

TEST_P(AttentionTest, DecodeOfEveryLength) {
  std::vector<int32_t> lengths;
  for (int32_t n = 1; n <= 200; n += n < 70 ? 1 : 5) lengths.push_back(n);
  for (const int32_t n : {255, 256, 257, 511, 512, 513, 1023, 1024, 1025}) lengths.push_back(n);
  const std::vector<int32_t> counts(lengths.size(), 1);
  for (const int32_t block_size : {16, 64}) {
    check(lengths, counts, shape(4, 1, 64, 4), block_size);
    check(lengths, counts, shape(3, 3, 128, 4, 130), block_size);
  }
}

// Scores far beyond the cap, of layers with and without a window.
TEST_P(AttentionTest, SoftCappedScores) {
  for (const int32_t window : {0, 70}) {
    for (const int32_t dim : {64, 96, 128, 256}) {
      AttentionShape s = shape(4, 2, dim, 40, window);
      s.softcap = 5;
      check({5, 90, 333, 150, 260}, {1, 1, 1, 40, 260}, s, 16, 3);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(AttentionTest, SlidingWindow) {
  for (const int32_t window : {1, 2, 15, 16, 17, 32, 33, 64, 65, 100, 1000}) {
    for (const int32_t block_size : {16, 64}) {
      check({5, 90, 333, 150, 260}, {1, 1, 1, 40, 260}, shape(3, 1, 64, 1, window), block_size, 3);
      if (HasFatalFailure()) return;
    }
  }
}

// Layers with a window and without take turns in one step, as begun and as replayed from a capture.
TEST_P(AttentionTest, LayersThatDifferInTheirWindow) {
  for (const int32_t dim : {64, 80}) {
    const AttentionShape windowed = shape(8, 2, dim, 6, 100);
    ops_ = backend_->make_ops(windowed);
    PagedBatch batch(
        *backend_, *ops_, random_, {900, 33, 2500, 400, 300}, {1, 1, 1, 200, 300}, windowed, 16);
    Call calls[4];
    for (Call& call : calls) call = make_call(batch.view.num_tokens, windowed);
    const auto shape_of = [&](int i) {
      AttentionShape s = windowed;
      if (i % 2 == 1) s.window = 0;
      return s;
    };
    const auto run = [&] {
      batch.memory->begin(*ops_, batch.view, windowed);
      for (int i = 0; i < 4; ++i) {
        ops_->attention(calls[i].query, batch.cache(), shape_of(i), batch.view, calls[i].out.view);
      }
    };
    run();
    backend_->device().synchronize();
    backend_->device().capture(dim, run);
    for (const Call& call : calls) {
      const auto bytes = static_cast<size_t>(call.out.view.stride * call.out.view.rows());
      backend_->copy(call.out.view.data, std::vector<uint8_t>(bytes, 0x7f));
    }
    if (!backend_->device().replay(dim)) run();
    for (int i = 0; i < 4; ++i) {
      batch.shape = shape_of(i);
      const Matrix out = backend_->download(calls[i].out);
      for (size_t s = 0; s + 1 < batch.cu_tokens.size(); ++s) {
        for (int32_t t = batch.cu_tokens[s]; t < batch.cu_tokens[s + 1]; t += 13) {
          check_row(batch, calls[i], out, t, s, batch.positions[static_cast<size_t>(t)]);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(AttentionTest, LargeScoresDoNotOverflow) {
  const AttentionShape s{2, 1, 64, 60.0f, 0};
  ops_ = backend_->make_ops(s);
  for (const int32_t length : {70, 900}) {
    const PagedBatch batch(*backend_, *ops_, random_, {length, length}, {1, 3}, s, 16);
    const Call call = make_call(4, s);
    ops_->attention(call.query, batch.cache(), s, batch.view, call.out.view);
    for (const float value : backend_->download(call.out).values) ASSERT_LT(std::abs(value), 6.0f);
  }
}

// One captured batch of four rows, run with other slots and positions than it was captured with.
TEST_P(AttentionTest, CapturedStepTakesOtherContents) {
  const AttentionShape s = shape(8, 2, 64, 4);
  ops_ = backend_->make_ops(s);
  const PagedBatch batch(*backend_, *ops_, random_, {900, 33, 500, 1}, {1, 1, 1, 1}, s, 16);
  const Call call = make_call(4, s);
  const auto run = [&] {
    batch.memory->begin(*ops_, batch.view, s);
    ops_->attention(call.query, batch.cache(), s, batch.view, call.out.view);
  };
  run();  // once outside, as warm-up does
  backend_->device().synchronize();
  backend_->device().capture(4, run);
  const std::vector<TestStep::Row> steps[] = {
      {{0, 899, 1, true}, {1, 32, 1, true}, {2, 499, 1, true}, {3, 0, 1, true}},
      {{2, 77, 1, true}, {0, 640, 1, true}, {-1, 0, 1, true}, {-1, 0, 1, true}},
      {{1, 0, 1, true}, {2, 255, 1, true}, {0, 16, 1, true}, {-1, 0, 1, true}}};
  for (const auto& rows : steps) {
    TestStep step;
    step.rows = rows;
    batch.memory->upload(step);
    const bool replayed = backend_->device().replay(4);
    ASSERT_EQ(replayed, !backend_->is_cpu());
    if (!replayed) run();
    const Matrix out = backend_->download(call.out);
    for (int32_t t = 0; t < 4; ++t) {
      const TestStep::Row& row = rows[static_cast<size_t>(t)];
      if (row.slot < 0) continue;
      check_row(batch, call, out, t, static_cast<size_t>(row.slot), row.first);
    }
  }
  EXPECT_FALSE(backend_->device().replay(5));
}

MILLRACE_ON_ALL_BACKENDS(AttentionTest);

}  // namespace
}  // namespace millrace
