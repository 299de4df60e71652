#include <cmath>

#include "tests/engine/kernels/draw_test.h"

namespace millrace {
namespace {

using reference::Matrix;
using ShardsTest = DrawTest;

// Ranks that share a vocabulary decide as one would that has all of it, most rows from what each
// found in its shard.
TEST_P(ShardsTest, ShardsDecideAsTheWhole) {
  SamplingParams greedy, hot, logprob, filtered, penalized, top;
  greedy.temperature = 0;
  hot.temperature = 1.5f;
  logprob.num_logprobs = 0;
  filtered.top_k = 40;
  filtered.top_p = 0.9f;
  penalized.repetition_penalty = 1.3f;
  top.num_logprobs = 5;
  for (const int64_t size : {16, 1001, 50257, 128256}) {
    Matrix logits = random_.matrix(24, size);
    for (int64_t r = 0; r < 4; ++r) {  // ties across shards
      logits.row(r)[size - 1] = logits.row(r)[size / 2] = logits.row(r)[size / 3] = 9;
    }
    std::vector<Draw> draws;
    for (uint64_t r = 0; r < 24; ++r) {
      SamplingParams params = r % 3 == 0 ? greedy : r % 3 == 1 ? hot : logprob;
      params.seed = r;
      draws.push_back({params, 100 + r, {1, 2, 3}, {3}});
      ASSERT_FALSE(params.needs_all_logits());
    }
    logits.row(5)[size - 2] = NAN;
    const auto check = [&](int num_shards, bool whole) {
      const auto want = sample(logits, draws);
      const auto got = sample(logits, draws, num_shards, whole);
      for (size_t r = 0; r < draws.size(); ++r) {
        ASSERT_EQ(got[r].finite, want[r].finite) << r;
        if (want[r].finite == 0) continue;
        ASSERT_EQ(got[r].token, want[r].token) << r << " of " << size << " in " << num_shards;
        ASSERT_NEAR(got[r].logprob, want[r].logprob, 1e-5);
        ASSERT_EQ(got[r].num_top, want[r].num_top);
        for (int32_t i = 0; i < got[r].num_top; ++i) {
          ASSERT_EQ(got[r].top[i].token, want[r].top[i].token) << r << ", " << i;
        }
      }
    };
    for (const int num_shards : {2, 3, 4}) check(num_shards, /*whole=*/false);
    for (size_t r = 0; r < draws.size(); ++r) {
      const SamplingParams& other = r % 4 == 0 ? filtered : r % 4 == 1 ? penalized : top;
      if (r % 4 != 3) draws[r].params = other;
      ASSERT_EQ(draws[r].params.needs_all_logits(), r % 4 != 3);
    }
    for (const int num_shards : {2, 3, 4}) check(num_shards, /*whole=*/true);
    if (HasFatalFailure()) return;
  }
}

MILLRACE_ON_ALL_BACKENDS(ShardsTest);

}  // namespace
}  // namespace millrace
