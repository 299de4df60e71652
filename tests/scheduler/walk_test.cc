// Random walks: arrivals, cancels, plans and commits in any order, tiny pools, 1 to 8 stages. Every
// answer is compared with what the fake model says, and nothing may be lost.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <deque>
#include <map>
#include <random>
#include <vector>

#include "engine/base/hash.h"
#include "tests/scheduler/fake_replica.h"

namespace millrace {
namespace {

// The one right answer, and the reason for its end.
struct Answer {
  std::vector<int32_t> tokens;
  FinishReason finish = FinishReason::kNone;
};

Answer answer_of(const Request& request) {
  Answer answer;
  const auto& stops = request.stop_token_ids;
  for (int32_t i = 0; i < request.max_tokens; ++i) {
    const int64_t position = static_cast<int64_t>(request.prompt.size()) + i;
    const int32_t token = fake_token(request.prompt[0], position);
    if (token < 0) {
      answer.finish = FinishReason::kError;
      return answer;
    }
    answer.tokens.push_back(token);
    const bool may_stop = i + 1 >= request.min_tokens;
    if (may_stop && std::count(stops.begin(), stops.end(), token) > 0) {
      answer.finish = FinishReason::kStop;
      return answer;
    }
  }
  answer.finish = FinishReason::kLength;
  return answer;
}

class Walk {
 public:
  Walk(const SchedulerConfig& config, uint64_t seed)
      : config_(config), scheduler_(config), replica_(config), random_(seed) {}

  // Acts at random until `commits` plans are committed, then lets everything end.
  void run(int commits) {
    while (num_commits_ < commits && !testing::Test::HasFailure()) {
      const int dice = draw(0, 99);
      if (dice < arrival_percent()) {
        for (int n = draw(1, 4); n > 0; --n) arrive();
      } else if (dice < 24) {
        scheduler_.cancel(cancel_one());
      } else if (dice < 64) {
        plan();
      } else {
        commit();
      }
      ASSERT_EQ(scheduler_.check_integrity(), "");
    }
    for (int i = 0; i < 100'000 && !scheduler_.idle() && !testing::Test::HasFailure(); ++i) {
      while (plan()) {
      }
      ASSERT_FALSE(in_flight_.empty()) << "requests wait, and nothing can be planned";
      commit();
      ASSERT_EQ(scheduler_.check_integrity(), "");
    }
    ASSERT_TRUE(scheduler_.idle());
    EXPECT_TRUE(open_.empty()) << open_.size() << " requests never ended";
    EXPECT_EQ(scheduler_.stats().free_blocks, config_.num_blocks);
    EXPECT_EQ(scheduler_.stats().running + scheduler_.stats().waiting, 0);
  }

  uint64_t plans_hash() const { return plans_hash_; }
  const std::array<int, 5>& ended() const { return ended_; }  // by reason
  int num_expired() const { return num_expired_; }
  size_t num_scored() const { return num_scored_; }
  SchedulerStats stats() const { return scheduler_.stats(); }

 private:
  struct Open {
    Answer answer;
    std::vector<int32_t> scored;  // ids of the prompt whose logprobs were asked for
    size_t num_seen = 0;
  };

  int draw(int low, int high) { return low + static_cast<int>(random_() % (high - low + 1u)); }

  // Busy hours and quiet ones, so that the pool fills up and the engine runs dry.
  int arrival_percent() const { return num_commits_ / 300 % 3 == 0 ? 2 : 16; }

  void arrive() {
    Request request;
    const bool is_long = draw(0, 9) == 0;
    const int64_t room = int64_t{config_.num_blocks} * config_.block_size;
    request.prompt.assign(static_cast<size_t>(draw(1, is_long ? 400 : 60)), 1);
    // Eight in a row have a beginning in common, of any length.
    request.prompt[0] = static_cast<int32_t>(next_id_ / 8);
    const size_t common = static_cast<size_t>(draw(1, 200));
    for (size_t i = common; i < request.prompt.size(); ++i) request.prompt[i] = draw(2, 99);
    request.priority = draw(0, 4) == 0 ? draw(-2, 2) : 0;
    const int64_t deadline = draw(0, 9) == 0 ? num_commits_ + draw(1, 300) : INT64_MAX;
    request.max_tokens = draw(1, is_long ? 60 : 25);
    request.min_tokens = draw(0, 3) == 0 ? draw(0, request.max_tokens) : 0;
    for (int n = draw(0, 2); n > 0; --n) {
      request.stop_token_ids.push_back(draw(0, kFakeVocabulary - 1));
    }
    std::vector<int32_t> scored;
    if (draw(0, 3) == 0) {
      request.sampling.num_prompt_logprobs = 0;
      scored.assign(request.prompt.begin() + 1, request.prompt.end());
    }
    const int64_t length = static_cast<int64_t>(request.prompt.size()) + request.max_tokens;
    const Answer answer = answer_of(request);
    const Status status = scheduler_.add(next_id_, std::move(request), deadline);
    if (length > room) {
      EXPECT_EQ(status.code, ErrorCode::kInvalidArgument);
    } else if (scheduler_.stats().waiting >= config_.max_queue && !status.ok()) {
      EXPECT_EQ(status.code, ErrorCode::kOverloaded);
    } else {
      EXPECT_TRUE(status.ok()) << status.message;
      open_[next_id_] = {answer, scored};
    }
    ++next_id_;
  }

  // Any id so far: waiting, running, ended or never accepted.
  RequestId cancel_one() {
    const auto newest = static_cast<int>(next_id_);
    const auto id = static_cast<RequestId>(draw(std::max(0, newest - 40), newest));
    if (draw(0, 2) > 0) return next_id_ + 1000;  // unknown
    open_.erase(id);
    return id;
  }

  bool plan() {
    std::vector<Emission> failed;
    auto plan = scheduler_.plan(failed);
    EXPECT_TRUE(failed.empty());
    if (!plan) return false;
    for (const uint8_t byte : encode(*plan)) plans_hash_ = hash_combine(plans_hash_, byte);
    in_flight_.push_back(std::move(*plan));
    EXPECT_LE(static_cast<int>(in_flight_.size()), config_.pp + 1);
    EXPECT_EQ(scheduler_.num_in_flight(), static_cast<int>(in_flight_.size()));
    return true;
  }

  void commit() {
    if (in_flight_.empty()) return;
    StepResult result = replica_.run(in_flight_.front());
    in_flight_.pop_front();
    result.compute_us += static_cast<uint32_t>(draw(0, 100));
    for (int stage = 0; stage < config_.pp; ++stage) {
      result.stage = static_cast<uint16_t>(stage);
      scheduler_.observe(result);
    }
    for (const Emission& emission : scheduler_.commit(result)) take(emission);
    ++num_commits_;
    for (const Emission& emission : scheduler_.expire(num_commits_)) {
      EXPECT_EQ(emission.status.code, ErrorCode::kTimeout);
      EXPECT_EQ(open_.erase(emission.id), 1u);
      ++num_expired_;
    }
  }

  void take(const Emission& emission) {
    const auto found = open_.find(emission.id);
    ASSERT_NE(found, open_.end()) << "request " << emission.id << " is not open";
    Open& open = found->second;
    // Every logprob once, all with the first token.
    const bool is_first = open.num_seen == 0 && !emission.tokens.empty();
    ASSERT_EQ(emission.prompt.size(), is_first ? open.scored.size() : 0);
    num_scored_ += emission.prompt.size();
    for (size_t i = 0; i < emission.prompt.size(); ++i) {
      ASSERT_EQ(emission.prompt[i].token, open.scored[i]);
      ASSERT_EQ(emission.prompt[i].logprob, -static_cast<float>(i + 1));
    }
    for (const SampledToken& token : emission.tokens) {
      ASSERT_LT(open.num_seen, open.answer.tokens.size());
      ASSERT_EQ(token.token, open.answer.tokens[open.num_seen++]);
    }
    EXPECT_EQ(emission.status.ok(), emission.finish != FinishReason::kError);
    const bool complete = open.num_seen == open.answer.tokens.size();
    if (emission.finish == FinishReason::kNone) {
      EXPECT_TRUE(!complete || open.answer.finish == FinishReason::kError);
      return;
    }
    EXPECT_TRUE(complete);
    EXPECT_EQ(emission.finish, open.answer.finish);
    ++ended_[static_cast<size_t>(emission.finish)];
    open_.erase(found);
  }

  SchedulerConfig config_;
  Scheduler scheduler_;
  FakeReplica replica_;
  std::mt19937_64 random_;
  std::deque<StepPlan> in_flight_;
  std::map<RequestId, Open> open_;
  RequestId next_id_ = 1;
  int num_commits_ = 0;
  int num_expired_ = 0;
  size_t num_scored_ = 0;
  uint64_t plans_hash_ = 0;
  std::array<int, 5> ended_{};
};

SchedulerConfig walk_config(int pp, int size) {
  SchedulerConfig config;
  config.pp = pp;
  config.num_blocks = std::array<uint32_t, 3>{9, 40, 300}[static_cast<size_t>(size)];
  config.max_num_seqs = std::array{3, 12, 32}[static_cast<size_t>(size)];
  config.max_num_batched_tokens = std::array{7, 64, 512}[static_cast<size_t>(size)];
  config.max_queue = 20;
  return config;
}

class WalkTest : public testing::TestWithParam<int> {};

// 8 stage counts x 3 sizes x 4,200 committed plans.
TEST_P(WalkTest, EveryRequestGetsItsAnswerOnce) {
  const int pp = GetParam();
  std::array<int, 5> ended{};
  int num_expired = 0;
  uint64_t num_preempted = 0;
  uint64_t num_hits = 0;
  size_t num_scored = 0;
  // 10^7 steps: MILLRACE_WALK_COMMITS=420000.
  const char* longer = std::getenv("MILLRACE_WALK_COMMITS");
  const int num_commits = longer != nullptr ? std::atoi(longer) : 4200;
  for (int size = 0; size < 3; ++size) {
    SCOPED_TRACE(size);
    Walk walk(walk_config(pp, size), static_cast<uint64_t>(pp * 10 + size));
    walk.run(num_commits);
    if (HasFailure()) return;
    num_expired += walk.num_expired();
    num_preempted += walk.stats().preemptions;
    num_hits += walk.stats().prefix_hit_tokens;
    num_scored += walk.num_scored();
    for (size_t i = 0; i < ended.size(); ++i) ended[i] += walk.ended()[i];
  }
  // The walk went where it should.
  EXPECT_GT(num_expired, 20);
  EXPECT_GT(num_preempted, 100u);
  EXPECT_GT(num_hits, 1000u);
  EXPECT_GT(num_scored, 10000u);
  EXPECT_GT(ended[static_cast<size_t>(FinishReason::kLength)], 500);
  EXPECT_GT(ended[static_cast<size_t>(FinishReason::kStop)], 100);
  EXPECT_GT(ended[static_cast<size_t>(FinishReason::kError)], 10);
}

TEST_P(WalkTest, SameSeedSamePlans) {
  const auto hash = [](uint64_t seed) {
    Walk walk(walk_config(GetParam(), 1), seed);
    walk.run(300);
    return walk.plans_hash();
  };
  EXPECT_EQ(hash(5), hash(5));
  EXPECT_NE(hash(5), hash(6));
}

INSTANTIATE_TEST_SUITE_P(Stages, WalkTest, testing::Range(1, 9));

// One of higher priority takes its blocks in the middle of its prompt: what was scored before may
// be computed again, but is not scored again.
TEST(Walk, APreemptedPromptIsNotScoredAgain) {
  SchedulerConfig config = walk_config(2, 0);
  config.num_blocks = 6;
  Scheduler scheduler(config);
  FakeReplica replica(config);
  Request request;
  request.prompt.assign(90, 2);
  request.max_tokens = 1;
  request.sampling.num_prompt_logprobs = 3;
  ASSERT_TRUE(scheduler.add(1, request).ok());
  std::deque<StepPlan> in_flight;
  std::vector<Emission> failed;
  size_t num_scored = 0, num_reported = 0;
  for (int step = 0; !scheduler.idle(); ++step) {
    if (step == 5) {
      EXPECT_GT(num_scored, 10u);
      Request other;
      other.prompt.assign(75, 1);
      other.max_tokens = 1;
      other.priority = 1;
      ASSERT_TRUE(scheduler.add(2, other).ok());
    }
    while (auto plan = scheduler.plan(failed)) in_flight.push_back(std::move(*plan));
    for (const Row& row : in_flight.front().rows) num_scored += row.num_scored();
    for (const Emission& emission : scheduler.commit(replica.run(in_flight.front()))) {
      num_reported += emission.prompt.size();
    }
    in_flight.pop_front();
    ASSERT_EQ(scheduler.check_integrity(), "");
    if (step == 5) {
      EXPECT_LT(num_scored, 80u);
    }
  }
  EXPECT_EQ(scheduler.stats().preemptions, 1u);
  EXPECT_EQ(num_scored, 89u);
  EXPECT_EQ(num_reported, 89u);
}

TEST(Walk, TenThousandQueued) {
  SchedulerConfig config = walk_config(4, 2);
  config.max_queue = 10'000;
  Scheduler scheduler(config);
  FakeReplica replica(config);
  for (RequestId id = 0; id < 10'000; ++id) {
    Request request;
    request.prompt.assign(20, static_cast<int32_t>(id));
    request.max_tokens = 4;
    ASSERT_TRUE(scheduler.add(id, std::move(request)).ok());
  }
  for (RequestId id = 1; id < 10'000; id += 2) scheduler.cancel(id);
  std::deque<StepPlan> in_flight;
  std::vector<Emission> failed;
  int ended = 0;
  while (!scheduler.idle()) {
    while (auto plan = scheduler.plan(failed)) in_flight.push_back(std::move(*plan));
    ASSERT_FALSE(in_flight.empty());
    for (const Emission& emission : scheduler.commit(replica.run(in_flight.front()))) {
      EXPECT_EQ(emission.id % 2, 0u);
      ended += emission.finish != FinishReason::kNone;
    }
    in_flight.pop_front();
  }
  EXPECT_EQ(ended, 5000);
  EXPECT_EQ(scheduler.check_integrity(), "");
}

}  // namespace
}  // namespace millrace
