// Loading, serving, draining, stopping.
#include <gtest/gtest.h>

#include "tests/engine/coordinator/fake_cluster.h"

namespace millrace {
namespace {

bool says(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

void expect_refused(FakeCluster& c, RequestId id, ErrorCode code, const std::string& part) {
  c.submit(id);
  EXPECT_EQ(c.answers[id].num_ends, 1);
  EXPECT_EQ(c.answers[id].finish, FinishReason::kError);
  EXPECT_EQ(c.answers[id].status.code, code);
  EXPECT_TRUE(says(c.answers[id].status.message, part)) << c.answers[id].status.message;
}

TEST(Life, LoadServeDrain) {
  FakeCluster c(cluster_config(2, 2));
  c.tick(1);
  ASSERT_TRUE(c.welcome);
  EXPECT_EQ(c.welcome->model_path, "/models/tiny");
  EXPECT_EQ(c.welcome->pp, 2);
  for (int rank : {3, 0, 2}) c.ready(rank);
  EXPECT_FALSE(c.became_ready);
  EXPECT_FALSE(c.coordinator.stats(c.now).ready);
  c.ready(1);
  for (int rank : {2, 0, 1, 3}) {
    EXPECT_FALSE(c.became_ready);
    EXPECT_FALSE(c.coordinator.stats(c.now).ready);
    EXPECT_FALSE(c.coordinator.stats(c.now).healthy);
    c.started(rank);
  }
  ASSERT_TRUE(c.became_ready);
  EXPECT_EQ(c.became_ready->num_blocks, 37u);  // the least: rank 3's
  ASSERT_EQ(c.became_ready->ranks.size(), 4u);
  EXPECT_EQ(c.became_ready->ranks[2].rank, 2);
  EXPECT_EQ(c.sent, (std::vector{FrameType::kWelcome, FrameType::kStart}));
  EXPECT_TRUE(c.coordinator.stats(c.now).healthy);

  c.submit(1);
  c.submit(2, 50, 7);
  EXPECT_GT(c.num_unanswered(0), 0);
  c.handle(DrainEvent{});
  EXPECT_FALSE(c.finished);
  EXPECT_TRUE(c.coordinator.stats(c.now).healthy);
  expect_refused(c, 3, ErrorCode::kUnavailable, "draining");
  c.run_dry();
  for (RequestId id : {1, 2}) {
    const auto& answer = c.answers[id];
    EXPECT_EQ(answer.finish, FinishReason::kLength);
    EXPECT_EQ(answer.tokens.size(), id == 1 ? 4u : 7u);
  }
  ASSERT_TRUE(c.finished);
  EXPECT_EQ(c.finished->exit_code, ExitCode::kOk);
  EXPECT_EQ(c.sent.back(), FrameType::kShutdown);
  const CoordinatorStats stats = c.coordinator.stats(c.now);
  EXPECT_EQ(stats.scheduler.tokens_emitted, 11u);
  ASSERT_EQ(stats.stages.size(), 2u);
  EXPECT_GT(stats.stages[0].compute_us, 0u);
  EXPECT_DOUBLE_EQ(stats.stage_bubble_fraction(), 4. / 16);
  EXPECT_DOUBLE_EQ(stats.exposed_comm_fraction(), 5. / 16);

  c.handle(LinkClosedEvent{0, "end of stream"});  // the workers leave: nothing to say
  c.handle(StopEvent{"again"});
  c.handle(DrainEvent{});
  expect_refused(c, 4, ErrorCode::kUnavailable, "ended");
}

TEST(Life, DrainWhenIdleAndWhileLoading) {
  FakeCluster idle(cluster_config(1, 1));
  idle.started_all();
  idle.handle(DrainEvent{});
  ASSERT_TRUE(idle.finished);
  EXPECT_EQ(idle.finished->exit_code, ExitCode::kOk);
  FakeCluster loading(cluster_config(1, 1));
  loading.handle(DrainEvent{});
  ASSERT_TRUE(loading.finished);
  EXPECT_EQ(loading.finished->exit_code, ExitCode::kOk);
  FakeCluster starting(cluster_config(1, 1));
  starting.ready_all();
  starting.handle(DrainEvent{});
  ASSERT_TRUE(starting.finished);
  EXPECT_EQ(starting.finished->exit_code, ExitCode::kOk);
  EXPECT_EQ(starting.sent.back(), FrameType::kShutdown);
}

TEST(Life, StopEndsOpenRequests) {
  FakeCluster c(cluster_config(1, 2));
  c.started_all();
  c.submit(1);
  c.submit(2);
  c.step(0);
  c.handle(StopEvent{"millrace is ending"});
  for (RequestId id : {1, 2}) {
    EXPECT_EQ(c.answers[id].status.code, ErrorCode::kUnavailable);
    EXPECT_EQ(c.answers[id].status.message, "millrace is ending");
  }
  EXPECT_EQ(c.sent.back(), FrameType::kShutdown);
  ASSERT_TRUE(c.finished);
  EXPECT_EQ(c.finished->exit_code, ExitCode::kOk);
}

TEST(Life, RefusesBeforeReadyAndWhatCannotRun) {
  FakeCluster c(cluster_config(1, 1));
  expect_refused(c, 1, ErrorCode::kUnavailable, "loading");
  c.started_all();
  c.submit(2, 700, 10);
  EXPECT_EQ(c.answers[2].status.code, ErrorCode::kInvalidArgument);
  for (RequestId id = 10; id < 30; ++id) c.submit(id);
  EXPECT_EQ(c.answers[29].status.code, ErrorCode::kOverloaded);
  c.run_dry();
  EXPECT_EQ(c.answers[10].finish, FinishReason::kLength);
}

TEST(Life, NothingIsPlannedBeforeTheLastHasStarted) {
  FakeCluster c(cluster_config(2, 2));
  c.ready_all();
  for (int rank = 0; rank < 4; ++rank) {
    expect_refused(c, static_cast<RequestId>(rank), ErrorCode::kUnavailable, "loading");
    c.tick(1000);
    c.beat_all();
    EXPECT_EQ(c.sent.back(), FrameType::kStart);
    EXPECT_FALSE(c.became_ready);
    c.started(rank);
  }
  ASSERT_TRUE(c.became_ready);
  EXPECT_EQ(c.sent.back(), FrameType::kStart);
  c.submit(9);
  EXPECT_EQ(c.sent.back(), FrameType::kPlan);
  c.run_dry();
  EXPECT_EQ(c.answers[9].finish, FinishReason::kLength);
}

TEST(Life, WhatComesTogetherIsPlannedTogether) {
  FakeCluster c(cluster_config(1, 1));
  c.tick(1);
  c.started_all();
  c.submit(1, 5, 4, /*more=*/true);
  EXPECT_EQ(c.num_unanswered(0), 0);
  c.submit(2);
  ASSERT_GT(c.num_unanswered(0), 0);
  EXPECT_EQ(c.next_result(0)->rows.size(), 2u);
  c.run_dry();
  EXPECT_EQ(c.answers[1].num_ends + c.answers[2].num_ends, 2);
}

TEST(Life, TheQueueWaitsAsLongAsItsFirst) {
  FakeCluster c(cluster_config(1, 1));
  c.started_all();
  c.submit(1);
  c.now += 50;
  EXPECT_EQ(c.coordinator.stats(c.now).queue_wait, 0);  // it runs
  // Until a result comes no further plan is made.
  for (const RequestId id : {2, 3}) {
    c.submit(id);
    c.now += 100;
  }
  EXPECT_EQ(c.coordinator.stats(c.now).queue_wait, 200);
  c.handle(CancelEvent{2});
  EXPECT_EQ(c.coordinator.stats(c.now).queue_wait, 100);
  c.run_dry();
  EXPECT_EQ(c.coordinator.stats(c.now).queue_wait, 0);
}

TEST(Life, Cancel) {
  FakeCluster c(cluster_config(1, 2));
  c.started_all();
  c.submit(1, 5, 9);
  c.submit(2, 5, 9);
  c.handle(CancelEvent{1});
  EXPECT_EQ(c.answers[1].finish, FinishReason::kCancelled);
  EXPECT_TRUE(c.answers[1].status.ok());
  c.handle(CancelEvent{1});
  c.handle(CancelEvent{99});
  c.run_dry();
  EXPECT_TRUE(c.answers[1].tokens.empty());
  EXPECT_EQ(c.answers[2].tokens.size(), 9u);
  c.handle(CancelEvent{2});
  EXPECT_EQ(c.coordinator.stats(c.now).scheduler.free_blocks, 39u);
}

TEST(Load, RanksThatDisagreeAreNamed) {
  FakeCluster c(cluster_config(1, 3));
  for (int rank = 0; rank < 3; ++rank) {
    Ready ready = c.ready_of(rank);
    if (rank > 0) ready.config_hash = 5;
    c.frame(rank, FrameType::kReady, encode(ready));
  }
  ASSERT_TRUE(c.finished);
  EXPECT_EQ(c.finished->exit_code, ExitCode::kModel);
  EXPECT_TRUE(says(c.finished->message, "rank 1, 2")) << c.finished->message;
}

TEST(Load, ARankWithoutBlocksIsNamed) {
  FakeCluster c(cluster_config(1, 2));
  c.ready(0);
  Ready ready = c.ready_of(1);
  ready.num_blocks = 0;
  c.frame(1, FrameType::kReady, encode(ready));
  ASSERT_TRUE(c.finished);
  EXPECT_EQ(c.finished->exit_code, ExitCode::kOutOfMemory);
  EXPECT_TRUE(says(c.finished->message, "rank 1"));
}

TEST(Load, TimeoutNamesTheMissing) {
  FakeCluster c(cluster_config(2, 2));
  c.ready(2);
  c.tick(c.config.load_timeout);
  EXPECT_FALSE(c.finished);
  c.tick(1);
  ASSERT_TRUE(c.finished);
  EXPECT_EQ(c.finished->exit_code, ExitCode::kWorkerLost);
  EXPECT_TRUE(says(c.finished->message, "rank 0, 1, 3")) << c.finished->message;
}

TEST(Load, TimeoutNamesWhoHasNotStarted) {
  FakeCluster c(cluster_config(2, 2));
  c.ready_all();
  c.started(1);
  while (c.now - 1000 < c.config.load_timeout) {
    c.tick(1000);
    c.beat_all();
  }
  EXPECT_FALSE(c.finished);
  c.tick(1);
  ASSERT_TRUE(c.finished);
  EXPECT_EQ(c.finished->exit_code, ExitCode::kWorkerLost);
  EXPECT_TRUE(says(c.finished->message, "rank 0, 2, 3")) << c.finished->message;
}

TEST(Load, AFailureToStartKeepsItsExitCodeAndWords) {
  FakeCluster c(cluster_config(1, 2));
  c.ready_all();
  c.started(0);
  c.frame(1, FrameType::kFailed,
      encode(Failed{1, static_cast<int>(ExitCode::kOutOfMemory), "no memory for the KV cache"}));
  c.handle(LinkClosedEvent{1, "end of stream"});
  ASSERT_TRUE(c.finished);
  EXPECT_FALSE(c.became_ready);
  EXPECT_EQ(c.finished->exit_code, ExitCode::kOutOfMemory);
  EXPECT_EQ(
      c.finished->message, "worker rank 1 was lost while loading: no memory for the KV cache");
}

TEST(Load, FailureKeepsItsExitCodeAndWords) {
  FakeCluster c(cluster_config(1, 2));
  c.ready(0);
  c.frame(1, FrameType::kFailed,
      encode(Failed{1, static_cast<int>(ExitCode::kOutOfMemory), "no room for weights"}));
  c.handle(LinkClosedEvent{1, "end of stream"});
  c.handle(LinkClosedEvent{0, "end of stream"});
  ASSERT_TRUE(c.finished);
  EXPECT_EQ(c.finished->exit_code, ExitCode::kOutOfMemory);
  EXPECT_EQ(c.finished->message, "worker rank 1 was lost while loading: no room for weights");
}

TEST(Load, UnknownExitCodeIsAFailure) {
  FakeCluster c(cluster_config(1, 1));
  c.frame(0, FrameType::kFailed, encode(Failed{0, 0, ""}));
  ASSERT_TRUE(c.finished);
  EXPECT_EQ(c.finished->exit_code, ExitCode::kFailure);
}

TEST(Load, ASilentRankIsNoHangWhileLoading) {
  FakeCluster c(cluster_config(1, 2));
  for (int i = 0; i < 100; ++i) c.tick(1000);
  EXPECT_FALSE(c.finished);
  c.started_all();
  c.tick(4000);
  EXPECT_FALSE(c.finished);
}

// What a stage idles before a step counts only where pp requests were open all the time since the
// plan before it.
TEST(Life, IdleTimeCountsWhileThereIsEnoughToRun) {
  FakeCluster c(cluster_config(1, 2));
  c.started_all();
  c.submit(1, 5, 6);
  c.run_dry();  // alone: a pipeline of two cannot be full
  EXPECT_EQ(c.coordinator.stats(c.now).stages[0].idle_us, 0u);
  c.submit(2, 5, 6);
  c.submit(3, 5, 6);
  c.run_dry();
  const CoordinatorStats stats = c.coordinator.stats(c.now);
  const uint64_t counted = stats.stages[1].idle_us / 4;
  EXPECT_GT(counted, 2u);
  EXPECT_LT(counted, stats.scheduler.steps - 6);  // not those of the first, nor the first two
  EXPECT_EQ(stats.stages[0].idle_us, stats.stages[1].idle_us);
}

}  // namespace
}  // namespace millrace
