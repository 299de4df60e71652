// The replica's state machine: requests in, plans out, results in. Pure: (event, now) -> actions;
// the shell (launch/cluster/engine.h) owns sockets, clocks and threads, the simulator and the tests
// drive the same code. One thread.
//
// Life: kLoading (waits for every rank's Ready) -> kStarting (for its kStarted) -> kServing ->
// kDraining -> kStopped; or kFailed from anywhere when a rank is lost.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "engine/base/status.h"
#include "engine/protocol/messages.h"
#include "engine/protocol/step.h"
#include "scheduler/scheduler.h"

namespace millrace {

using Millis = int64_t;  // a steady clock of the shell's, or simulated

struct CoordinatorConfig {
  EngineConfig engine;
  uint32_t epoch = 1;
  int32_t max_queue = 1024;
  double max_stretch = 0;            // of the time between tokens by prompts (SchedulerConfig)
  Balance balance = Balance::kTime;  // of steps
  SipKey cache_key{};                // of the prefix cache; random where clients choose prompts
  Millis load_timeout = 600'000;     // until every rank has started
  Millis heartbeat_timeout = 5'000;  // no heartbeat from a rank
  Millis hang_timeout = 5'000;       // work in flight and a rank's progress stands still
};

// --- events
struct SubmitEvent {
  RequestId id;
  Request request;
  bool more = false;  // another follows at once: nothing is planned before the last
};
struct CancelEvent {
  RequestId id;
};
struct FrameEvent {
  int rank;
  Bytes frame;
};  // any frame of a worker, header included
struct LinkClosedEvent {
  int rank;
  std::string reason;
};
struct TickEvent {};   // a few times a second
struct DrainEvent {};  // refuse new requests, stop when idle
struct StopEvent {
  std::string reason;
};  // stop now; open requests end as unavailable
using Event = std::variant<SubmitEvent, CancelEvent, FrameEvent, LinkClosedEvent, TickEvent,
    DrainEvent, StopEvent>;

// --- actions
struct SendAll {
  std::shared_ptr<const Bytes> frame;
};  // the same bytes to every rank
struct Emit {
  Emission emission;
};  // tokens or the end of one request
struct BecameReady {
  uint32_t num_blocks;
  std::vector<Ready> ranks;
};
// The replica is over: clients were answered by Emits before it. kOk after a drain or stop; else a
// code and a sentence that names the rank.
struct Finished {
  ExitCode exit_code;
  std::string message;
};
using Action = std::variant<SendAll, Emit, BecameReady, Finished>;

// Sums over the steps of one stage since ready, as StepResult has them.
struct StageTimes {
  uint64_t compute_us = 0;
  uint64_t comm_us = 0;
  uint64_t idle_us = 0;
  uint64_t wait_us = 0;
  void add(const StepResult& result);
};

struct CoordinatorStats {
  SchedulerStats scheduler;
  bool ready = false;
  bool healthy = false;  // ready, not failed, every rank beats
  // How long the request that runs next has waited: no new one waits less, but by its priority.
  Millis queue_wait = 0;
  // Per stage, of the steps before which there was enough to run: since the plan before it, pp or
  // more requests were open at any time.
  std::vector<StageTimes> stages;

  // Of all time in `stages`: idle, waits for other stages included; and in collectives or waiting
  // for what another stage sends, be it not yet computed (a rank cannot tell). 0 without any. On a
  // GPU sums inside a captured graph are not seen, and those outside count the host's time alone.
  double stage_bubble_fraction() const;
  double exposed_comm_fraction() const;
};

class Coordinator {
 public:
  Coordinator(const CoordinatorConfig& config, Millis now);

  // Appends what the shell must do, in order. The first event of all, whatever it is, makes it send
  // kWelcome; the shell sends that to links that come later too.
  void handle(Event event, Millis now, std::vector<Action>& actions);
  CoordinatorStats stats(Millis now) const;
  std::string check_integrity() const;

 private:
  enum class Life { kLoading, kStarting, kServing, kDraining, kStopped, kFailed };

  struct Rank {
    std::optional<Ready> ready;
    bool started = false;   // has its cache, is warm
    Millis last_heard = 0;  // any frame
    Millis last_moved = 0;  // steps_done or progress changed
    Heartbeat heartbeat;    // the newest
  };

  // coordinator.cc
  void on(SubmitEvent& event);
  void on(CancelEvent& event);
  void on(DrainEvent& event);
  void on(StopEvent& event);
  void plan_all();
  void refuse(RequestId id, ErrorCode code, std::string message);
  void emit(Emission emission);
  void send_all(FrameType type, const Bytes& body);
  void end_requests(const std::string& message);
  void finish(Life end, ExitCode code, std::string message);
  // The replica is over: clients are answered, then the shell hears which rank and why.
  void lose(int rank, const std::string& reason, ExitCode code = ExitCode::kWorkerLost);

  // frames.cc
  void on(FrameEvent& event);
  void on(LinkClosedEvent& event);
  bool on_ready(int rank, std::span<const uint8_t> body);
  bool on_started(int rank, std::span<const uint8_t> body);
  bool on_result(int rank, std::span<const uint8_t> body);
  bool on_heartbeat(int rank, std::span<const uint8_t> body);
  bool on_failed(int rank, std::span<const uint8_t> body);
  bool answers_plan(const StepResult& result) const;
  void start_ranks();
  void start_serving();

  // watch.cc
  void on(TickEvent& event);
  void watch_loading();
  void watch_heartbeats();
  void watch_progress();
  bool all_beat(Millis at) const;

  bool loading() const { return life_ == Life::kLoading || life_ == Life::kStarting; }
  bool serving() const { return life_ == Life::kServing || life_ == Life::kDraining; }
  bool over() const { return life_ == Life::kStopped || life_ == Life::kFailed; }
  // Ranks of one stage are neighbours (parallel/topology.h).
  int stage_of(int rank) const { return rank / config_.engine.tp; }
  int num_stages() const { return config_.engine.pp; }

  const CoordinatorConfig config_;
  Life life_ = Life::kLoading;
  bool welcomed_ = false;
  Millis now_;
  Millis load_began_;
  Millis last_tick_;
  Millis last_step_ = 0;  // of the newest commit, or when idle ranks got work
  std::vector<Action> out_;
  std::vector<Rank> ranks_;
  uint32_t num_blocks_ = 0;                // of the KV cache, from kStarting on
  std::optional<Scheduler> scheduler_;     // from kServing on
  std::map<RequestId, Millis> open_;       // accepted and not ended: when they came
  uint64_t num_issued_ = 0;                // plans
  std::vector<uint64_t> results_;          // per stage: plans it has answered
  std::deque<std::vector<Row>> expected_;  // per plan in flight: its rows with output
  size_t least_open_ = 0;                  // requests, since the newest plan
  std::vector<bool> enough_;  // plan n at n mod size: pp requests were open since the one before
  std::vector<StageTimes> times_;  // CoordinatorStats::stages
};

}  // namespace millrace
