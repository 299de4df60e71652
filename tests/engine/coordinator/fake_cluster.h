// A coordinator with a simulated clock and fake workers: its frames go through the real codecs
// into a fake replica, the answers come back as frames. Watches after every event that each token
// is the right one, that a request ends once and is then silent, that all have ended when the
// replica is over, and the coordinator's own invariants.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/coordinator/coordinator.h"
#include "tests/scheduler/fake_replica.h"

namespace millrace {

CoordinatorConfig cluster_config(int tp, int pp);

class FakeCluster {
 public:
  struct Answer {
    int64_t num_prompt = 0;
    std::vector<int32_t> tokens;
    FinishReason finish = FinishReason::kNone;
    Status status;
    int num_ends = 0;
  };

  explicit FakeCluster(const CoordinatorConfig& config);

  void handle(Event event);
  void tick(Millis after);
  void frame(int rank, FrameType type, const Bytes& body);  // of the current epoch
  Ready ready_of(int rank) const;
  void ready(int rank) { frame(rank, FrameType::kReady, encode(ready_of(rank))); }
  void started(int rank) { frame(rank, FrameType::kStarted, {}); }
  void ready_all();    // loaded, as far as kStart
  void started_all();  // loaded and started: it serves
  void beat(int rank, uint64_t progress);
  // Every rank beats and has moved.
  void beat_all();

  // Submits a request whose answer is fake_token's, without stop ids.
  void submit(RequestId id, int prompt = 5, int max_tokens = 4, bool more = false);
  // The next result of a stage, if it has a plan to answer; false if not.
  std::optional<StepResult> next_result(int stage);
  bool step(int stage);
  // All stages answer until nothing is in flight.
  void run_dry();

  int num_ranks() const { return config.engine.tp * config.engine.pp; }
  int num_unanswered(int stage) const;  // plans

  const CoordinatorConfig config;
  Millis now = 1000;
  Coordinator coordinator;
  std::map<RequestId, Answer> answers;
  std::vector<FrameType> sent;
  std::optional<EngineConfig> welcome;
  std::optional<BecameReady> became_ready;
  std::optional<Finished> finished;

 private:
  void perform(const SendAll& action);
  void perform(const Emit& action);
  void perform(const BecameReady& action);
  void perform(const Finished& action);

  std::unique_ptr<FakeReplica> replica_;
  std::vector<StepResult> results_;  // of every plan, as the last stage gives them
  std::vector<size_t> answered_;     // per stage
  uint64_t progress_ = 0;
};

}  // namespace millrace
