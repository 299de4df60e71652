// Logprobs of prompts and biased draws in whole replicas: against transformers, against the same
// ids as they were generated, and of any degree, chunk or history.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/engine/worker/golden.h"
#include "tests/engine/worker/local_replica.h"

namespace millrace {
namespace {

constexpr int32_t kTop = 3;

EngineConfig tiny(int tp, int pp, int budget = 64) {
  EngineConfig config;
  config.model_path = "tests/data/tiny-llama";
  config.tp = tp;
  config.pp = pp;
  config.threads = 1;
  config.max_num_seqs = 8;
  config.max_num_batched_tokens = budget;
  config.max_model_len = 128;
  config.kv_cache_bytes = 4 << 20;
  return config;
}

Request scoring(std::vector<int32_t> prompt, int max_tokens = 1) {
  Request request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  request.sampling.temperature = 0;
  request.sampling.num_logprobs = kTop;
  request.sampling.num_prompt_logprobs = kTop;
  return request;
}

std::vector<int32_t> some_ids(int count, int32_t first = 5) {
  std::vector<int32_t> ids;
  for (int i = 0; i < count; ++i) ids.push_back((first + 37 * i) % 256);
  return ids;
}

void expect_near(
    const std::vector<SampledToken>& a, const std::vector<SampledToken>& b, float tolerance) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i].token, b[i].token) << "id " << i;
    ASSERT_NEAR(a[i].logprob, b[i].logprob, tolerance) << "id " << i;
    ASSERT_EQ(a[i].top.size(), b[i].top.size());
    for (size_t t = 0; t < a[i].top.size(); ++t) {  // ids of near ties may change places
      ASSERT_NEAR(a[i].top[t].logprob, b[i].top[t].logprob, tolerance) << "id " << i;
    }
  }
}

struct Layout {
  int tp, pp, budget;
};
class LogprobsOf : public ::testing::TestWithParam<Layout> {
 protected:
  EngineConfig config() const { return tiny(GetParam().tp, GetParam().pp, GetParam().budget); }
  bool is_one_rank() const { return GetParam().tp == 1; }
};

TEST_P(LogprobsOf, PromptsAreThoseOfTransformers) {
  LocalReplica replica(config());
  for (const Golden& golden : read_goldens("tiny-llama")) {
    const auto& answer = replica.run(scoring(golden.ids));
    ASSERT_EQ(answer.finish, FinishReason::kLength) << answer.status.message;
    ASSERT_EQ(answer.prompt.size(), golden.ids.size() - 1);
    const size_t vocabulary = golden.logits.size() / golden.ids.size();
    for (size_t i = 0; i < answer.prompt.size(); ++i) {
      const float* row = golden.logits.data() + i * vocabulary;
      double total = 0;
      for (size_t v = 0; v < vocabulary; ++v) total += std::exp(double{row[v]});
      const auto logprob = [&](int32_t id) { return row[id] - std::log(total); };
      const SampledToken& scored = answer.prompt[i];
      ASSERT_EQ(scored.token, golden.ids[i + 1]);
      ASSERT_NEAR(scored.logprob, logprob(scored.token), 2e-4) << "id " << i + 1;
      std::vector<float> sorted(row, row + vocabulary);
      std::ranges::sort(sorted, std::greater<>());
      ASSERT_EQ(scored.top.size(), static_cast<size_t>(kTop));
      for (size_t t = 0; t < scored.top.size(); ++t) {
        ASSERT_NEAR(scored.top[t].logprob, logprob(scored.top[t].token), 2e-4);
        ASSERT_NEAR(row[scored.top[t].token], sorted[t], 2e-4);
      }
    }
  }
}

// The same ids scored and generated; on one rank to the bit, whatever the chunks.
TEST_P(LogprobsOf, APromptScoresAsItWasGenerated) {
  LocalReplica replica(config());
  for (const int length : {1, 2, 16, 17, 40, 90}) {
    std::vector<int32_t> ids = some_ids(length);
    const auto generated = replica.run(scoring(ids, 20));
    ASSERT_EQ(generated.prompt.size(), ids.size() - 1);
    for (const SampledToken& token : generated.tokens) ids.push_back(token.token);
    const auto whole = replica.run(scoring(ids));
    ASSERT_EQ(whole.prompt.size(), ids.size() - 1);
    std::vector<SampledToken> expected = generated.prompt;
    expected.insert(expected.end(), generated.tokens.begin(), generated.tokens.end());
    expect_near(whole.prompt, expected, is_one_rank() ? 0 : 1e-4f);
  }
  EXPECT_EQ(replica.check_integrity(), "");
}

TEST_P(LogprobsOf, ABiasForcesAndBans) {
  LocalReplica replica(config());
  for (const float temperature : {0.0f, 1.0f}) {
    Request plain = scoring(some_ids(30), 6);
    plain.sampling.temperature = temperature;
    plain.sampling.seed = 9;
    const auto expected = replica.run(plain);
    const int32_t first = expected.tokens[0].token;

    Request forced = plain;
    forced.logit_bias = {{77, 100}};
    const auto only = replica.run(forced);
    EXPECT_EQ(only.ids(), std::vector<int32_t>(6, 77));
    // Logprobs are the model's own: the first token's others are those without a bias.
    expect_near(only.prompt, expected.prompt, 0);
    ASSERT_EQ(only.tokens[0].top.size(), static_cast<size_t>(kTop));
    EXPECT_EQ(only.tokens[0].top[0].token, expected.tokens[0].top[0].token);
    EXPECT_EQ(only.tokens[0].top[0].logprob, expected.tokens[0].top[0].logprob);
    EXPECT_LT(only.tokens[0].logprob, only.tokens[0].top[0].logprob);

    Request banned = plain;
    banned.logit_bias = {{first, -100}};
    const auto without = replica.run(banned).ids();
    EXPECT_EQ(std::ranges::count(without, first), 0);

    Request listed = plain;
    listed.sampling.only_listed = true;
    listed.logit_bias = {{3, 0}, {first == 200 ? 201 : 200, kForbidden}, {511, 0}};
    for (const int32_t id : replica.run(listed).ids()) EXPECT_TRUE(id == 3 || id == 511) << id;
    // Nothing stays behind for the slot's next tenant.
    EXPECT_EQ(replica.run(plain).ids(), expected.ids());
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, LogprobsOf,
    ::testing::Values(Layout{1, 1, 64}, Layout{1, 1, 7}, Layout{2, 1, 64}, Layout{3, 1, 50},
        Layout{1, 2, 64}, Layout{1, 4, 9}, Layout{2, 2, 64}),
    [](const auto& info) {
      return "tp" + std::to_string(info.param.tp) + "pp" + std::to_string(info.param.pp) +
             "budget" + std::to_string(info.param.budget);
    });

// Scored prompts, plain ones and biased ones beside each other in too small a cache: each has what
// it has alone, to the bit.
TEST(Logprobs, DoNotDependOnTheCompanyAndSurvivePreemption) {
  std::vector<Request> requests;
  for (int i = 0; i < 8; ++i) {
    requests.push_back(scoring(some_ids(20 + 9 * i, i % 2), 24));
    requests.back().sampling.temperature = 0.8f;
    if (i % 3 == 1) requests.back().sampling.num_prompt_logprobs = -1;
    if (i % 4 == 2) requests.back().logit_bias = {{i, 100}};
  }
  EngineConfig config = tiny(1, 2, 20);
  config.kv_cache_bytes = 160 << 10;
  LocalReplica replica(config);
  std::vector<RequestId> ids;
  for (const Request& request : requests) ids.push_back(replica.submit(request));
  for (size_t i = 0; i < ids.size(); ++i) {
    LocalReplica one(tiny(1, 2));
    const auto& expected = one.run(requests[i]);
    const auto& got = replica.wait(ids[i]);
    EXPECT_EQ(got.ids(), expected.ids()) << i;
    expect_near(got.prompt, expected.prompt, 0);
    const bool scored = requests[i].sampling.num_prompt_logprobs >= 0;
    EXPECT_EQ(got.prompt.size(), scored ? requests[i].prompt.size() - 1 : 0);
  }
  EXPECT_GT(replica.stats().scheduler.preemptions, 0u);
  EXPECT_EQ(replica.check_integrity(), "");
  EXPECT_EQ(replica.stats().scheduler.free_blocks, replica.stats().scheduler.num_blocks);
}

}  // namespace
}  // namespace millrace
