// Random events in any order and state; FakeCluster watches after each.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "tests/engine/coordinator/fake_cluster.h"

namespace millrace {
namespace {

class RandomLife {
 public:
  RandomLife(int tp, int pp, unsigned seed) : c_(cluster_config(tp, pp)), random_(seed) {}

  // Returns the number of events until the replica was over.
  int run(int max_events) {
    int events = 0;
    while (!c_.finished && events < max_events && !testing::Test::HasFailure()) {
      act();
      ++events;
    }
    if (!c_.finished) {
      c_.handle(DrainEvent{});
      c_.run_dry();
    }
    EXPECT_TRUE(c_.finished);
    check_answers();
    return events;
  }

  const FakeCluster& cluster() const { return c_; }

 private:
  int draw(int n) { return static_cast<int>(random_() % static_cast<unsigned>(n)); }

  void act() {
    const int rank = draw(c_.num_ranks());
    const int dice = draw(1000);
    if (!c_.became_ready && dice < 300) {
      if (next_ready_ < c_.num_ranks()) return c_.ready(next_ready_++);
      if (next_started_ < c_.num_ranks()) c_.started(next_started_++);
    } else if (dice < 450) {
      c_.submit(next_id_++, 1 + draw(40), 1 + draw(12));
    } else if (dice < 500) {
      c_.handle(CancelEvent{static_cast<RequestId>(draw(static_cast<int>(next_id_) + 2))});
    } else if (dice < 900) {
      c_.step(draw(c_.config.engine.pp));
    } else if (dice < 940) {
      c_.tick(draw(1500));
    } else if (dice < 995) {
      c_.beat_all();
    } else {
      end(rank);
    }
  }

  void end(int rank) {
    switch (draw(5)) {
      case 0: return c_.handle(DrainEvent{});
      case 1: return c_.handle(LinkClosedEvent{rank, "end of stream"});
      case 2: return c_.frame(rank, FrameType::kFailed, encode(Failed{rank, 1, "broken"}));
      case 3: return c_.handle(StopEvent{"stopped"});
      default: return c_.handle(FrameEvent{rank, Bytes(5)});
    }
  }

  void check_answers() {
    for (const auto& [id, answer] : c_.answers) {
      EXPECT_EQ(answer.num_ends, 1);
      EXPECT_EQ(answer.finish == FinishReason::kError, !answer.status.ok());
    }
  }

  FakeCluster c_;
  std::mt19937 random_;
  int next_ready_ = 0;
  int next_started_ = 0;
  RequestId next_id_ = 1;
};

TEST(RandomLife, EveryRequestEndsOnce) {
  int events = 0;
  int num_complete = 0;
  int num_served = 0;
  for (unsigned seed = 0; events < 40'000; ++seed) {
    SCOPED_TRACE(seed);
    RandomLife life(1 + seed % 2, 1 + static_cast<int>(seed / 2 % 4), seed);
    events += life.run(600);
    if (HasFailure()) return;
    num_served += life.cluster().became_ready.has_value();
    for (const auto& [id, answer] : life.cluster().answers) {
      num_complete += answer.finish == FinishReason::kLength;
    }
  }
  EXPECT_GT(num_served, 50);
  EXPECT_GT(num_complete, 500);
}

}  // namespace
}  // namespace millrace
