// Exact plans of small cases.
#include <gtest/gtest.h>

#include "tests/scheduler/harness.h"

namespace millrace {
namespace {

SchedulerConfig make_config(int pp, int max_tokens = 2048, uint32_t blocks = 1024) {
  SchedulerConfig config;
  config.pp = pp;
  config.num_blocks = blocks;
  config.max_num_seqs = 8;
  config.max_num_batched_tokens = max_tokens;
  return config;
}

TEST(Plan, ChunksAPromptAndRunsOneStepAhead) {
  Harness h(make_config(1, 20));
  ASSERT_TRUE(h.scheduler.add(1, make_request(50, 3)).ok());
  EXPECT_EQ(h.plan(), "0:20+2");
  EXPECT_EQ(h.plan(), "0:20+1");
  EXPECT_EQ(h.plan(), "none");  // two lanes
  EXPECT_TRUE(h.commit().empty());
  EXPECT_EQ(h.plan(), "0:10+1*");
  EXPECT_TRUE(h.commit().empty());
  EXPECT_EQ(h.plan(), "0:1*");  // its input is sampled by the plan before, not committed yet
  EXPECT_EQ(h.plan(), "none");
  EXPECT_EQ(h.commit().size(), 1u);
  EXPECT_EQ(h.plan(), "0:1*");
  EXPECT_EQ(h.commit().size(), 1u);
  EXPECT_EQ(h.plan(), "none");  // all of max_tokens is planned
  const auto last = h.commit();
  ASSERT_EQ(last.size(), 1u);
  EXPECT_EQ(last[0].finish, FinishReason::kLength);
  EXPECT_TRUE(h.scheduler.idle());
  EXPECT_EQ(h.scheduler.stats().free_blocks, 1024u);
  EXPECT_EQ(h.plan(), "none");
  ASSERT_TRUE(h.scheduler.add(2, make_request(5, 1)).ok());
  EXPECT_EQ(h.plan(), "-0 0:5+1*");
  EXPECT_EQ(h.commit()[0].finish, FinishReason::kLength);
}

TEST(Plan, DecodesFirstThenPromptsInOrderUnderTheBudget) {
  Harness h(make_config(1, 32));
  h.scheduler.add(1, make_request(4, 9)).ok();
  EXPECT_EQ(h.plan(), "0:4+1*");
  h.scheduler.add(2, make_request(40, 9)).ok();
  h.scheduler.add(3, make_request(30, 9)).ok();
  EXPECT_EQ(h.plan(), "0:1* 1:31+2");
  h.commit();
  EXPECT_EQ(h.plan(), "0:1* 1:9+1* 2:22+2");
  h.commit();
  EXPECT_EQ(h.plan(), "0:1* 1:1* 2:8*");
}

TEST(Plan, AdmissionCarriesEverythingOnce) {
  Harness h(make_config(1, 8));
  Request request = make_request(12, 2);
  request.sampling.seed = 42;
  request.logit_bias = {{5, 1.5f}, {9, -100}};
  h.scheduler.add(1, request).ok();
  std::vector<Emission> failed;
  const auto first = h.scheduler.plan(failed);
  ASSERT_EQ(first->admissions.size(), 1u);
  EXPECT_EQ(first->admissions[0].token_ids, request.prompt);
  EXPECT_EQ(first->admissions[0].num_prompt, 12u);
  EXPECT_EQ(first->admissions[0].sampling, request.sampling);
  EXPECT_EQ(first->admissions[0].logit_bias, request.logit_bias);
  EXPECT_TRUE(h.scheduler.plan(failed)->admissions.empty());
}

// It takes no cached block, but others take its own; a token that it samples comes with all
// logprobs.
TEST(Plan, AScoredPromptComputesEveryPosition) {
  Harness h(make_config(1, 20));
  Request request = make_request(40, 2);
  h.scheduler.add(1, request).ok();
  for (const char* plan : {"0:20+2", "0:20+1*", "0:1*"}) {
    EXPECT_EQ(h.plan(), plan);
    h.commit();
  }
  request.sampling.num_prompt_logprobs = 0;
  h.scheduler.add(2, request).ok();
  EXPECT_EQ(h.plan(), "-0 0:20+2^");
  EXPECT_TRUE(h.commit().empty());
  EXPECT_EQ(h.plan(), "0:20+1^*");
  EXPECT_EQ(h.plan(), "0:1*");
  const auto emissions = h.commit();
  ASSERT_EQ(emissions.size(), 1u);
  EXPECT_EQ(emissions[0].tokens.size(), 1u);
  ASSERT_EQ(emissions[0].prompt.size(), 39u);
  EXPECT_EQ(emissions[0].prompt[19].token, 3);  // of the plan that scored them
  EXPECT_EQ(emissions[0].prompt[20].token, 4);
  EXPECT_TRUE(h.commit()[0].prompt.empty());
  request.sampling.num_prompt_logprobs = -1;
  h.scheduler.add(3, request).ok();
  EXPECT_EQ(h.plan(), "-0 0:8+3*");
  h.commit();
  request.prompt.resize(1);  // there is nothing to score
  request.sampling.num_prompt_logprobs = 5;
  h.scheduler.add(4, request).ok();
  EXPECT_EQ(h.plan(), "0:1* 1:1+1*");
}

TEST(Plan, RowsHaveFourteenBits) {
  Harness h(make_config(1, 40'000, 4096));
  h.scheduler.add(1, make_request(20'000, 1)).ok();
  EXPECT_EQ(h.plan(), "0:16383+1024");
  EXPECT_EQ(h.plan(), "0:3617+226*");
}

TEST(Plan, ALoneSequenceIsKeptApartByPlansWithoutRows) {
  Harness h(make_config(2));
  h.scheduler.add(1, make_request(4, 4)).ok();
  EXPECT_EQ(h.plan(), "0:4+1*");
  EXPECT_EQ(h.plan(), "none");  // lanes stay free for who arrives during a prompt
  h.commit();
  EXPECT_EQ(h.plan(), "(empty)");
  EXPECT_EQ(h.plan(), "0:1*");
  EXPECT_EQ(h.plan(), "(empty)");
  EXPECT_EQ(h.plan(), "none");  // three lanes
  h.commit();
  EXPECT_EQ(h.plan(), "0:1*");  // one step ahead
  EXPECT_EQ(h.commit().size(), 1u);
  EXPECT_EQ(h.plan(), "(empty)");
  h.commit();
  EXPECT_EQ(h.plan(), "0:1*");
  EXPECT_EQ(h.plan(), "none");  // nothing is left to decode
}

TEST(Plan, DecodersSpreadOverTheStages) {
  Harness h(make_config(4));
  for (RequestId id = 1; id <= 6; ++id) h.scheduler.add(id, make_request(4, 9)).ok();
  EXPECT_EQ(h.plan(), "0:4+1* 1:4+1* 2:4+1* 3:4+1* 4:4+1* 5:4+1*");
  h.commit();
  EXPECT_EQ(h.plan(), "(empty)");
  EXPECT_EQ(h.plan(), "(empty)");
  EXPECT_EQ(h.plan(), "(empty)");
  EXPECT_EQ(h.plan(), "0:1* 1:1*");
  EXPECT_EQ(h.plan(), "2:1* 3:1*");
  EXPECT_EQ(h.plan(), "none");  // five lanes
  h.commit();
  EXPECT_EQ(h.plan(), "4:1* 5:1*");
  h.commit();
  EXPECT_EQ(h.plan(), "(empty)");
  h.commit();
  EXPECT_EQ(h.plan(), "0:1* 1:1*");  // four plans after the last
}

TEST(Plan, ConsecutiveChunksOfOnePromptFillTheStages) {
  Harness h(make_config(4, 512));
  // A sixteenth of what is left, in whole tiles of 64 rows (375 355 335 315 299 are the shares),
  // and no fewer than 256: a smaller step would take as long.
  h.scheduler.add(1, make_request(6000, 2)).ok();
  for (const char* plan : {"0:320+20", "0:320+20", "0:320+20", "0:256+16", "0:256+16"}) {
    EXPECT_EQ(h.plan(), plan);
  }
  EXPECT_EQ(h.plan(), "none");
  h.commit();
  // Who arrives beside it adds to the backlog: 14,528 tokens.
  h.scheduler.add(2, make_request(10'000, 2)).ok();
  EXPECT_EQ(h.plan(), "0:512+32");  // the whole budget is less
}

TEST(Plan, MemoryIsReservedAndAdmissionWaitsInOrder) {
  Harness h(make_config(1, 2048, 4));
  h.scheduler.add(1, make_request(20, 12)).ok();  // two blocks to its end
  h.scheduler.add(2, make_request(40, 8)).ok();   // three
  h.scheduler.add(3, make_request(4, 4)).ok();    // one: fits, but is not first
  EXPECT_EQ(h.plan(), "0:20+2*");
  EXPECT_EQ(h.plan(), "0:1*");
  EXPECT_EQ(h.scheduler.stats().waiting, 2);
  h.scheduler.cancel(1);
  h.commit();
  EXPECT_EQ(h.plan(), "none");  // plan 1 still names slot 0
  h.commit();
  EXPECT_EQ(h.plan(), "-0 0:40+3* 1:4+1*");
}

TEST(Plan, APrefixIsSharedFromTheNextPlanOnWithinATenant) {
  Harness h(make_config(1, 40));
  const Request request = make_request(40, 2);
  h.scheduler.add(1, request).ok();
  h.scheduler.add(2, request).ok();
  Request other = request;
  other.cache_salt = 9;
  EXPECT_EQ(h.plan(), "0:40+3*");
  EXPECT_EQ(h.plan(), "0:1* 1:8+3*");  // two full blocks are there, eight tokens are left
  EXPECT_EQ(h.scheduler.stats().prefix_hit_tokens, 32u);
  h.scheduler.add(3, other).ok();
  h.commit();
  EXPECT_EQ(h.plan(), "1:1* 2:39+3");
  EXPECT_EQ(h.scheduler.stats().prefix_hit_tokens, 32u);
}

TEST(Plan, TwentyPromptsWithACommonBeginningComputeItOnce) {
  // What 20 prompts of 2,000 common and 30 own ids take until each has its first token.
  const auto run = [](bool salted) {
    Harness h(make_config(1, 512, 20 * 128));
    for (int i = 0; i < 20; ++i) {
      Request request = make_request(2030, 1);
      request.prompt[0] = 7;
      request.prompt[2000] = 1000 + i;
      request.cache_salt = salted ? static_cast<uint64_t>(i) : 0;
      EXPECT_TRUE(h.scheduler.add(static_cast<RequestId>(i + 1), std::move(request)).ok());
    }
    while (h.plan() != "none") h.commit();
    return h.scheduler.stats();
  };
  const SchedulerStats apart = run(/*salted=*/true), shared = run(/*salted=*/false);
  EXPECT_EQ(apart.tokens_computed, 20u * 2030);
  EXPECT_EQ(apart.prefix_hit_tokens, 0u);
  EXPECT_EQ(shared.tokens_computed, 2000u + 20 * 30);
  EXPECT_EQ(shared.prefix_hit_tokens, 19u * 2000);
  EXPECT_EQ(apart.steps, 80u);  // 40,600 tokens in steps of 512
  // Four for the first, then one for each: a plan has room for a budget of new prompts' ids.
  EXPECT_EQ(shared.steps, 23u);
}

TEST(Plan, HigherPriorityTakesTheBlocksOfLowerWhichComesBackWhole) {
  Harness h(make_config(1, 2048, 4));
  h.scheduler.add(1, make_request(33, 20)).ok();  // three blocks of four
  EXPECT_EQ(h.plan(), "0:33+3*");
  h.commit(5);
  Request urgent = make_request(40, 1);
  urgent.priority = 1;
  h.scheduler.add(2, urgent).ok();
  EXPECT_EQ(h.plan(), "-0 0:40+3*");
  EXPECT_EQ(h.scheduler.stats().preemptions, 1u);
  h.commit();
  std::vector<Emission> failed;
  const auto plan = h.scheduler.plan(failed);
  ASSERT_TRUE(plan && plan->admissions.size() == 1);
  EXPECT_EQ(plan->admissions[0].num_prompt, 33u);
  ASSERT_EQ(plan->admissions[0].token_ids.size(), 34u);
  EXPECT_EQ(plan->admissions[0].token_ids[33], 5);
}

TEST(Plan, SlotsLimitAdmission) {
  SchedulerConfig config = make_config(1);
  config.max_num_seqs = 2;
  Harness h(config);
  for (RequestId id = 1; id <= 3; ++id) h.scheduler.add(id, make_request(4, 1)).ok();
  EXPECT_EQ(h.plan(), "0:4+1* 1:4+1*");
  EXPECT_EQ(h.plan(), "none");
  EXPECT_EQ(h.commit().size(), 2u);
  EXPECT_EQ(h.plan(), "-0 -1 1:4+1*");
}

TEST(Plan, BudgetOfOneToken) {
  Harness h(make_config(1, 1));
  h.scheduler.add(1, make_request(2, 2)).ok();
  h.scheduler.add(2, make_request(1, 1)).ok();
  for (const char* expected : {"0:1+1", "0:1*", "0:1*", "-0 0:1+1*"}) {
    EXPECT_EQ(h.plan(), expected);
    h.commit();
  }
  EXPECT_TRUE(h.scheduler.idle());
}

}  // namespace
}  // namespace millrace
