// Deaths, hangs and frames that are not what they should be.
#include <gtest/gtest.h>

#include <functional>
#include <random>

#include "tests/engine/coordinator/fake_cluster.h"

namespace millrace {
namespace {

bool says(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

void expect_lost(FakeCluster& c, int rank) {
  ASSERT_TRUE(c.finished);
  EXPECT_EQ(c.finished->exit_code, ExitCode::kWorkerLost);
  const std::string name = "worker rank " + std::to_string(rank) + " was lost";
  EXPECT_TRUE(says(c.finished->message, name)) << c.finished->message;
  for (const auto& [id, answer] : c.answers) {
    if (answer.finish != FinishReason::kError) continue;
    EXPECT_EQ(answer.status.code, ErrorCode::kUnavailable);
    EXPECT_TRUE(says(answer.status.message, name)) << answer.status.message;
    EXPECT_TRUE(says(answer.status.message, "retry"));
  }
}

TEST(Loss, ALinkThatClosesInEveryState) {
  const std::vector<std::function<void(FakeCluster&)>> states = {
      [](FakeCluster&) {},                                  // nobody is ready
      [](FakeCluster& c) { c.ready(0); },                   // some are
      [](FakeCluster& c) { c.ready_all(); },                // nobody has started
      [](FakeCluster& c) { c.ready_all(), c.started(2); },  // some have
      [](FakeCluster& c) { c.started_all(); },
      [](FakeCluster& c) {  // plans in flight, requests waiting
        c.started_all();
        for (RequestId id = 1; id <= 9; ++id) c.submit(id, 60, 20);
      },
      [](FakeCluster& c) {  // half-way
        c.started_all();
        for (RequestId id = 1; id <= 4; ++id) c.submit(id, 6, 20);
        for (int i = 0; i < 9; ++i) c.step(i % 2);
      },
      [](FakeCluster& c) {  // draining
        c.started_all();
        c.submit(1);
        c.handle(DrainEvent{});
      },
  };
  for (size_t i = 0; i < states.size(); ++i) {
    SCOPED_TRACE(i);
    FakeCluster c(cluster_config(2, 2));
    states[i](c);
    c.handle(LinkClosedEvent{2, "connection reset"});
    expect_lost(c, 2);
    EXPECT_TRUE(says(c.finished->message, "connection reset"));
    for (const auto& [id, answer] : c.answers) EXPECT_EQ(answer.finish, FinishReason::kError);
    c.run_dry();  // what is still on the way changes nothing
    c.beat_all();
    c.tick(100'000);
  }
}

TEST(Loss, FailedWhileServingSaysMoreThanTheLink) {
  FakeCluster c(cluster_config(1, 2));
  c.started_all();
  c.submit(1);
  c.frame(1, FrameType::kFailed, encode(Failed{1, 1, "plan 0 does not follow"}));
  c.handle(LinkClosedEvent{1, "end of stream"});
  expect_lost(c, 1);
  EXPECT_TRUE(says(c.answers[1].status.message, "plan 0 does not follow"));
}

TEST(Loss, OlderEpochsAreDroppedNewerAreNot) {
  FakeCluster c(cluster_config(1, 2));
  c.started_all();
  c.submit(1);
  const Bytes body = encode(Failed{1, 1, "from a former life"});
  c.handle(FrameEvent{1, make_frame(FrameType::kFailed, c.config.epoch - 1, body)});
  c.handle(FrameEvent{1, make_frame(FrameType::kPlan, 0, body)});
  EXPECT_FALSE(c.finished);
  c.handle(FrameEvent{1, make_frame(FrameType::kHeartbeat, c.config.epoch + 1, {})});
  expect_lost(c, 1);
}

TEST(Loss, FramesThatAreNotDue) {
  const auto result_with = [](const std::function<void(StepResult&)>& change, int rank, int stage) {
    return [=](FakeCluster& c) {
      StepResult result = *c.next_result(stage);
      change(result);
      c.frame(rank, FrameType::kResult, encode(result));
    };
  };
  struct Case {
    const char* what;
    int rank;
    std::function<void(FakeCluster&)> act;
  };
  const std::vector<Case> cases = {
      {"an empty frame", 3,
          [](FakeCluster& c) {
            c.handle(FrameEvent{3, {}});
          }},
      {"a body too long", 3,
          [](FakeCluster& c) {
            Bytes frame =
                make_frame(FrameType::kHeartbeat, c.config.epoch, encode(Heartbeat{3, 1, 1}));
            frame.push_back(0);
            c.handle(FrameEvent{3, frame});
          }},
      {"a second ready", 1, [](FakeCluster& c) { c.ready(1); }},
      {"a second start", 1, [](FakeCluster& c) { c.started(1); }},
      {"a coordinator's frame", 1, [](FakeCluster& c) { c.frame(1, FrameType::kShutdown, {}); }},
      {"another's heartbeat", 1,
          [](FakeCluster& c) {
            c.frame(1, FrameType::kHeartbeat, encode(Heartbeat{2, 1, 1}));
          }},
      {"another's failure", 1,
          [](FakeCluster& c) {
            c.frame(1, FrameType::kFailed, encode(Failed{2, 1, "x"}));
          }},
      {"a result of tp rank 1", 3, result_with([](StepResult&) {}, 3, 1)},
      {"a result of another stage", 0, result_with([](StepResult&) {}, 0, 1)},
      {"no such stage", 2, result_with([](StepResult& r) { r.stage = 7; }, 2, 1)},
      {"a plan too late", 2, result_with([](StepResult& r) { ++r.sequence; }, 2, 1)},
      {"a plan never sent", 0, result_with([](StepResult& r) { r.sequence = 1000; }, 0, 0)},
      {"rows of the first stage", 0,
          result_with([](StepResult& r) { r.rows.emplace_back(); }, 0, 0)},
      {"no rows", 2, result_with([](StepResult& r) { r.rows.clear(); }, 2, 1)},
      {"a row too many", 2, result_with([](StepResult& r) { r.rows.push_back(r.rows[0]); }, 2, 1)},
      {"another slot", 2, result_with([](StepResult& r) { ++r.rows[0].slot; }, 2, 1)},
      {"two tokens", 2, result_with([](StepResult& r) { r.rows[0].tokens.push_back({}); }, 2, 1)},
      {"no token", 2, result_with([](StepResult& r) { r.rows[0].tokens.clear(); }, 2, 1)},
  };
  for (const Case& each : cases) {
    SCOPED_TRACE(each.what);
    FakeCluster c(cluster_config(2, 2));
    c.started_all();
    c.submit(1);
    each.act(c);
    expect_lost(c, each.rank);
    EXPECT_EQ(c.answers[1].finish, FinishReason::kError);
  }
}

TEST(Loss, StartsThatAreNotDue) {
  FakeCluster early(cluster_config(1, 2));
  early.ready(1);
  early.started(1);
  expect_lost(early, 1);
  FakeCluster twice(cluster_config(1, 2));
  twice.ready_all();
  twice.started(0);
  twice.started(0);
  expect_lost(twice, 0);
  FakeCluster with_a_body(cluster_config(1, 2));
  with_a_body.ready_all();
  with_a_body.frame(1, FrameType::kStarted, Bytes(1));
  expect_lost(with_a_body, 1);
  FakeCluster answers(cluster_config(1, 2));
  answers.ready_all();
  answers.started(1);
  answers.frame(1, FrameType::kResult, encode(StepResult{.stage = 1}));
  expect_lost(answers, 1);
}

TEST(Loss, ResultsBeforeTheStartAndBeyondThePlans) {
  FakeCluster loading(cluster_config(1, 1));
  loading.frame(0, FrameType::kResult, encode(StepResult{}));
  expect_lost(loading, 0);
  FakeCluster idle(cluster_config(1, 1));
  idle.started_all();
  idle.frame(0, FrameType::kResult, encode(StepResult{}));
  expect_lost(idle, 0);
}

TEST(Loss, RandomBytesNeverBringItDown) {
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {
    FakeCluster c(cluster_config(1, 2));
    c.started_all();
    c.submit(1);
    const auto type = static_cast<FrameType>(1 + random() % 10);
    Bytes body(random() % 60);
    for (uint8_t& byte : body) byte = static_cast<uint8_t>(random() % 4 == 0 ? random() : 0);
    Bytes frame = make_frame(type, c.config.epoch, body);
    if (round % 3 == 0) frame[random() % frame.size()] ^= static_cast<uint8_t>(1 + random() % 255);
    c.handle(FrameEvent{1, frame});
    if (testing::Test::HasFailure()) return;
    if (!c.finished) c.run_dry();
  }
}

TEST(Watch, SilenceNamesTheRank) {
  FakeCluster c(cluster_config(1, 3));
  c.started_all();
  for (int i = 0; i < 5; ++i) {
    c.tick(1000);
    for (int rank : {0, 2}) c.beat(rank, 0);
  }
  EXPECT_FALSE(c.finished);
  c.tick(1000);
  expect_lost(c, 1);
  EXPECT_TRUE(says(c.finished->message, "no heartbeat")) << c.finished->message;
}

TEST(Watch, AHangInTheWarmUpNamesWhoHasNotStarted) {
  FakeCluster c(cluster_config(1, 3));
  c.ready_all();
  const auto pass = [&](int seconds, bool moves) {
    for (int i = 0; i < seconds; ++i) {
      c.tick(1000);
      c.beat(0, 0);  // has started, so stands still
      c.beat(1, 50);
      c.beat(2, moves ? 60 + static_cast<uint64_t>(i) : 100);
    }
  };
  c.started(0);
  pass(60, /*moves=*/true);
  EXPECT_FALSE(c.finished);
  pass(6, /*moves=*/false);
  EXPECT_FALSE(c.finished);
  c.tick(1000);
  expect_lost(c, 1);
  EXPECT_TRUE(says(c.finished->message, "while loading: it hangs in its warm-up"))
      << c.finished->message;
}

TEST(Watch, SilenceInTheWarmUpNamesTheRank) {
  FakeCluster c(cluster_config(1, 2));
  c.ready_all();
  for (int i = 0; i < 5; ++i) {
    c.tick(1000);
    c.beat(0, static_cast<uint64_t>(i));
  }
  EXPECT_FALSE(c.finished);
  c.tick(1000);
  expect_lost(c, 1);
  EXPECT_TRUE(says(c.finished->message, "no heartbeat")) << c.finished->message;
}

TEST(Watch, IdleIsNoHang) {
  FakeCluster c(cluster_config(1, 2));
  c.started_all();
  const auto stand_still = [&](int seconds) {
    for (int i = 0; i < seconds; ++i) {
      c.tick(1000);
      for (int rank : {0, 1}) c.beat(rank, 7);
    }
  };
  stand_still(60);
  EXPECT_FALSE(c.finished);
  c.submit(1);  // the time counts from here
  stand_still(5);
  EXPECT_FALSE(c.finished);
  c.run_dry();
  stand_still(60);
  EXPECT_FALSE(c.finished);
  EXPECT_EQ(c.answers[1].finish, FinishReason::kLength);
}

TEST(Watch, AHangNamesWhoIsBehind) {
  for (int stuck = 0; stuck < 4; ++stuck) {
    SCOPED_TRACE(stuck);
    FakeCluster c(cluster_config(2, 2));
    c.started_all();
    c.submit(1, 5, 30);
    c.run_dry();
    c.submit(2, 5, 30);
    if (stuck >= 2) {  // the first stage has done what it could
      while (c.step(0)) {
      }
    }
    for (int i = 0; i < 6; ++i) {
      c.tick(1000);
      // The later stage has fewer layers: its ticks say nothing about the first stage's.
      for (int rank = 0; rank < 4; ++rank) {
        c.beat(rank, (rank < 2 ? 50u : 20u) + (rank == stuck ? 0 : 1));
      }
    }
    EXPECT_FALSE(c.finished);
    c.tick(1000);
    expect_lost(c, stuck);
    EXPECT_TRUE(says(c.finished->message, "hangs")) << c.finished->message;
  }
}

TEST(Watch, ASlowStageIsNoHangOfTheOther) {
  FakeCluster c(cluster_config(1, 2));
  c.started_all();
  c.submit(1, 5, 3);
  for (uint64_t i = 0; i < 60; ++i) {  // a minute of layers in the first stage
    c.tick(1000);
    c.beat(0, i);
    c.beat(1, 0);
  }
  EXPECT_FALSE(c.finished);
}

TEST(Watch, ACoordinatorThatWasStoppedForgives) {
  FakeCluster c(cluster_config(1, 2));
  c.started_all();
  c.submit(1);
  c.tick(60'000);  // stopped and continued: the heartbeats lie unread
  EXPECT_FALSE(c.finished);
  for (int i = 0; i < 5; ++i) c.tick(1000);
  EXPECT_FALSE(c.finished);
  EXPECT_TRUE(c.coordinator.stats(c.now).healthy);
  EXPECT_FALSE(c.coordinator.stats(c.now + 1000).healthy);
  c.tick(1000);
  expect_lost(c, 0);
}

}  // namespace
}  // namespace millrace
