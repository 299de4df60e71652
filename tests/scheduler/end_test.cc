// How requests end: refused, stopped, cancelled, failed.
#include <gtest/gtest.h>

#include "tests/scheduler/harness.h"

namespace millrace {
namespace {

SchedulerConfig make_config(int pp = 1) {
  SchedulerConfig config;
  config.pp = pp;
  config.num_blocks = 8;
  config.max_num_seqs = 4;
  config.max_queue = 2;
  return config;
}

TEST(End, RefusedWhenItCanNeverFit) {
  Harness h(make_config());
  const Status status = h.scheduler.add(1, make_request(100, 29));
  EXPECT_EQ(status.code, ErrorCode::kInvalidArgument);
  EXPECT_NE(status.message.find("129 tokens"), std::string::npos) << status.message;
  EXPECT_NE(status.message.find("holds 128"), std::string::npos) << status.message;
  EXPECT_TRUE(h.scheduler.add(1, make_request(100, 28)).ok());  // the id was not taken
  EXPECT_EQ(h.scheduler.add(2, make_request(1, INT32_MAX)).code, ErrorCode::kInvalidArgument);
}

TEST(End, RefusedWhenTheQueueIsFull) {
  Harness h(make_config());
  EXPECT_TRUE(h.scheduler.add(1, make_request(1, 1)).ok());
  EXPECT_TRUE(h.scheduler.add(2, make_request(1, 1)).ok());
  EXPECT_EQ(h.scheduler.add(3, make_request(1, 1)).code, ErrorCode::kOverloaded);
  h.plan();
  EXPECT_TRUE(h.scheduler.add(3, make_request(1, 1)).ok());
}

TEST(End, StopTokenIsEmittedAndWhatWasPlannedBehindItIsDropped) {
  Harness h(make_config());
  h.scheduler.add(1, make_request(4, 20, {9, 5})).ok();
  h.plan();
  h.plan();
  EXPECT_EQ(h.commit(1)[0].finish, FinishReason::kNone);
  h.plan();
  const auto stop = h.commit(5);
  ASSERT_EQ(stop.size(), 1u);
  EXPECT_EQ(stop[0].finish, FinishReason::kStop);
  EXPECT_EQ(stop[0].tokens.at(0).token, 5);
  EXPECT_EQ(h.scheduler.stats().running, 0);
  EXPECT_EQ(h.scheduler.stats().free_blocks, 7u);  // held by the plan in flight
  EXPECT_FALSE(h.scheduler.idle());
  EXPECT_EQ(h.plan(), "none");
  EXPECT_TRUE(h.commit(1).empty());
  EXPECT_TRUE(h.scheduler.idle());
  EXPECT_EQ(h.scheduler.stats().free_blocks, 8u);
  EXPECT_EQ(h.scheduler.stats().tokens_emitted, 2u);
}

TEST(End, NoStopBeforeMinTokens) {
  Harness h(make_config());
  Request request = make_request(4, 3, {5});
  request.min_tokens = 2;
  h.scheduler.add(1, request).ok();
  h.plan();
  EXPECT_EQ(h.commit(5)[0].finish, FinishReason::kNone);
  h.plan();
  EXPECT_EQ(h.commit(5)[0].finish, FinishReason::kStop);
}

TEST(End, AStopAtMaxTokensIsAStop) {
  Harness h(make_config());
  h.scheduler.add(1, make_request(4, 1, {5})).ok();
  h.plan();
  EXPECT_EQ(h.commit(5)[0].finish, FinishReason::kStop);
}

TEST(End, NonFiniteRowFailsThatRequestAlone) {
  Harness h(make_config());
  h.scheduler.add(1, make_request(4, 3)).ok();
  h.plan();
  h.scheduler.add(2, make_request(4, 3)).ok();
  h.plan();
  const auto bad = h.commit(0, RowStatus::kNonFinite);
  ASSERT_EQ(bad.size(), 1u);
  EXPECT_EQ(bad[0].id, 1u);
  EXPECT_EQ(bad[0].finish, FinishReason::kError);
  EXPECT_EQ(bad[0].status.code, ErrorCode::kInternal);
  EXPECT_TRUE(bad[0].tokens.empty());
  const auto good = h.commit(3);
  ASSERT_EQ(good.size(), 1u);
  EXPECT_EQ(good[0].id, 2u);
  EXPECT_EQ(good[0].finish, FinishReason::kNone);
}

TEST(End, CancelInEveryState) {
  Harness h(make_config());
  h.scheduler.cancel(99);  // unknown
  h.scheduler.add(1, make_request(4, 5)).ok();
  h.scheduler.cancel(1);  // waiting
  h.check();
  EXPECT_TRUE(h.scheduler.idle());

  h.scheduler.add(2, make_request(4, 5)).ok();
  EXPECT_EQ(h.plan(), "0:4+1*");
  h.scheduler.cancel(2);  // in flight
  h.scheduler.cancel(2);  // again
  h.check();
  EXPECT_EQ(h.plan(), "none");
  EXPECT_TRUE(h.commit().empty());
  EXPECT_TRUE(h.scheduler.idle());

  h.scheduler.add(3, make_request(4, 5)).ok();
  EXPECT_EQ(h.plan(), "-0 0:4+1*");
  h.commit();
  h.scheduler.cancel(3);  // decoding, nothing in flight
  h.check();
  EXPECT_TRUE(h.scheduler.idle());

  h.scheduler.add(4, make_request(4, 1)).ok();
  EXPECT_EQ(h.plan(), "-0 0:4+1*");
  h.scheduler.cancel(4);  // planned to its end
  EXPECT_TRUE(h.commit().empty());
  EXPECT_TRUE(h.scheduler.idle());
}

TEST(End, CancelBetweenChunks) {
  SchedulerConfig config = make_config();
  config.max_num_batched_tokens = 16;
  Harness h(config);
  h.scheduler.add(1, make_request(100, 5)).ok();
  h.scheduler.add(2, make_request(20, 5)).ok();
  EXPECT_EQ(h.plan(), "0:16+1");
  h.commit();
  h.scheduler.cancel(1);
  EXPECT_EQ(h.plan(), "-0 0:16+1");
}

TEST(EndDeathTest, ResultsComeInOrder) {
  Scheduler scheduler(make_config());
  StepResult result;
  EXPECT_DEATH(scheduler.commit(result), "the result of plan 0 came");
}

}  // namespace
}  // namespace millrace
