// The step contract over a whole replica of threads: the same ids for every degree, whatever else
// is in the batch, chunked or not; ends, cancels and bad starts.
#include <gtest/gtest.h>

#include <random>

#include "tests/engine/worker/local_replica.h"

namespace millrace {
namespace {

EngineConfig tiny(int tp, int pp) {
  EngineConfig config;
  config.model_path = "tests/data/tiny-llama";
  config.tp = tp;
  config.pp = pp;
  config.threads = 1;
  config.max_num_seqs = 8;
  config.max_num_batched_tokens = 64;
  config.max_model_len = 128;
  config.kv_cache_bytes = 4 << 20;
  return config;
}

Request request(int length, uint64_t seed, int max_tokens) {
  std::mt19937_64 random(seed);
  Request made;
  for (int i = 0; i < length; ++i) made.prompt.push_back(static_cast<int32_t>(random() % 256));
  made.max_tokens = max_tokens;
  made.sampling.temperature = 0;
  made.sampling.seed = seed;
  made.sampling.num_logprobs = 2;
  return made;
}

std::vector<int32_t> alone(const Request& request, int tp = 1, int pp = 1) {
  LocalReplica replica(tiny(tp, pp));
  return replica.run(request).ids();
}

// Two greedy runs of different degrees may part only where two logits tie (within 1e-5).
void expect_same(const LocalReplica::Answer& a, const LocalReplica::Answer& b) {
  ASSERT_EQ(a.tokens.size(), b.tokens.size());
  for (size_t i = 0; i < a.tokens.size(); ++i) {
    if (a.tokens[i].token == b.tokens[i].token) continue;
    ASSERT_EQ(a.tokens[i].top.size(), 2u);
    EXPECT_NEAR(a.tokens[i].top[0].logprob, a.tokens[i].top[1].logprob, 1e-5) << "token " << i;
    return;
  }
}

struct Degrees {
  int tp, pp;
};

class ReplicaOf : public ::testing::TestWithParam<Degrees> {};

TEST_P(ReplicaOf, GivesTheIdsOfOneRank) {
  const auto [tp, pp] = GetParam();
  LocalReplica one(tiny(1, 1));
  LocalReplica many(tiny(tp, pp));
  for (const int length : {1, 15, 16, 17, 63, 64, 65, 100}) {
    const Request r = request(length, static_cast<uint64_t>(length), 24);
    const LocalReplica::Answer expected = one.run(r);
    ASSERT_EQ(expected.finish, FinishReason::kLength) << expected.status.message;
    ASSERT_EQ(expected.tokens.size(), 24u);
    expect_same(expected, many.run(r));
  }
  EXPECT_EQ(many.check_integrity(), "");
}

TEST_P(ReplicaOf, SampledTokensDoNotDependOnTheCompany) {
  const auto [tp, pp] = GetParam();
  Request mine = request(40, 7, 20);
  mine.sampling.temperature = 0.9f;
  mine.sampling.top_p = 0.95f;
  mine.sampling.frequency_penalty = 0.5f;
  mine.sampling.repetition_penalty = 1.1f;
  const auto expected = alone(mine, tp, pp);
  LocalReplica replica(tiny(tp, pp));
  std::vector<RequestId> others;
  for (uint64_t i = 0; i < 5; ++i) {
    others.push_back(
        replica.submit(request(10 + 17 * static_cast<int>(i), i, 5 + 4 * static_cast<int>(i))));
  }
  const RequestId id = replica.submit(mine);
  for (uint64_t i = 5; i < 12; ++i) others.push_back(replica.submit(request(30, i, 12)));
  EXPECT_EQ(replica.wait(id).ids(), expected);
  for (const RequestId other : others) {
    EXPECT_EQ(replica.wait(other).finish, FinishReason::kLength);
  }
  EXPECT_EQ(replica.check_integrity(), "");
  EXPECT_EQ(replica.stats().scheduler.free_blocks, replica.stats().scheduler.num_blocks);
}

INSTANTIATE_TEST_SUITE_P(Degrees, ReplicaOf,
    ::testing::Values(
        Degrees{1, 1}, Degrees{2, 1}, Degrees{3, 1}, Degrees{1, 2}, Degrees{2, 2}, Degrees{1, 4}),
    [](const auto& info) {
      return "tp" + std::to_string(info.param.tp) + "pp" + std::to_string(info.param.pp);
    });

TEST(Replica, ChunkingDoesNotChangeAnId) {
  const Request r = request(100, 3, 16);
  const auto expected = alone(r);
  for (const int budget : {8, 17, 50}) {
    EngineConfig config = tiny(1, 2);
    config.max_num_batched_tokens = budget;
    LocalReplica replica(config);
    EXPECT_EQ(replica.run(r).ids(), expected) << budget;
  }
}

TEST(Replica, PreemptionAndSharedPrefixesDoNotChangeAnId) {
  std::vector<Request> requests;
  for (uint64_t i = 0; i < 6; ++i) {
    requests.push_back(request(20, i, 28));
    const Request first = requests[0];
    std::copy_n(first.prompt.begin(), 17, requests.back().prompt.begin());
    requests.back().sampling.temperature = 0.9f;
    requests.back().sampling.frequency_penalty = 0.5f;
    requests.back().sampling.repetition_penalty = 1.1f;
  }
  EngineConfig config = tiny(1, 2);
  config.kv_cache_bytes = 96 << 10;  // fewer blocks than they come to hold together
  LocalReplica replica(config);
  std::vector<RequestId> ids;
  for (const Request& r : requests) ids.push_back(replica.submit(r));
  for (size_t i = 0; i < ids.size(); ++i) {
    const auto& answer = replica.wait(ids[i]);
    ASSERT_EQ(answer.finish, FinishReason::kLength) << answer.status.message;
    EXPECT_EQ(answer.ids(), alone(requests[i], 1, 2)) << i;
  }
  EXPECT_EQ(replica.check_integrity(), "");
  EXPECT_GT(replica.stats().scheduler.preemptions, 0u);
  EXPECT_GT(replica.stats().scheduler.prefix_hit_tokens, 0u);
}

TEST(Replica, StopIdsEndARequestAndItsSlotServesAgain) {
  const Request r = request(20, 11, 30);
  const auto ids = alone(r);
  Request stopping = r;
  stopping.stop_token_ids = {ids[5]};
  const auto end = std::find(ids.begin(), ids.end(), ids[5]) - ids.begin() + 1;
  EngineConfig config = tiny(1, 2);
  config.max_num_seqs = 1;
  LocalReplica replica(config);
  for (int round = 0; round < 3; ++round) {
    const auto& answer = replica.run(stopping);
    EXPECT_EQ(answer.finish, FinishReason::kStop);
    EXPECT_EQ(answer.ids(), std::vector<int32_t>(ids.begin(), ids.begin() + end));
    EXPECT_EQ(replica.run(r).ids(), ids);
  }
  EXPECT_EQ(replica.check_integrity(), "");
}

TEST(Replica, ACancelledRequestLeavesTheOthersAlone) {
  const Request r = request(30, 5, 20);
  const auto expected = alone(r, 2, 2);
  LocalReplica replica(tiny(2, 2));
  const RequestId gone = replica.submit(request(60, 6, 60));
  const RequestId kept = replica.submit(r);
  replica.cancel(gone);
  EXPECT_EQ(replica.wait(kept).ids(), expected);
  EXPECT_EQ(replica.run(r).ids(), expected);
  EXPECT_EQ(replica.stats().scheduler.free_blocks, replica.stats().scheduler.num_blocks);
}

TEST(Replica, ARequestThatCanNeverFitFailsAlone) {
  EngineConfig config = tiny(1, 1);
  config.kv_cache_bytes = 1;  // below one block
  {
    LocalReplica replica(config);
    EXPECT_FALSE(replica.ready());
    EXPECT_EQ(replica.end().exit_code, ExitCode::kOutOfMemory);
  }
  config.kv_cache_bytes = 64 << 10;
  LocalReplica replica(config);
  ASSERT_TRUE(replica.ready());
  const auto& answer = replica.run(request(100, 1, 28));
  EXPECT_EQ(answer.finish, FinishReason::kError);
  EXPECT_FALSE(answer.status.message.empty());
  EXPECT_EQ(replica.run(request(4, 1, 4)).finish, FinishReason::kLength);
}

TEST(Replica, AMissingModelNamesThePathAndTheRank) {
  EngineConfig config = tiny(1, 2);
  config.model_path = "tests/data/no-such-model";
  LocalReplica replica(config);
  EXPECT_FALSE(replica.ready());
  EXPECT_EQ(replica.end().exit_code, ExitCode::kModel);
  EXPECT_NE(replica.end().message.find("no-such-model"), std::string::npos);
}

}  // namespace
}  // namespace millrace
