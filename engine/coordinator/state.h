// The coordinator's state and its verbs, split over coordinator.cc, frames.cc and watch.cc. Used by
// this room alone, from the coordinator's thread.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "engine/coordinator/coordinator.h"

namespace millrace {

struct Coordinator::State {
  enum class Life { kLoading, kServing, kDraining, kStopped, kFailed };

  struct Rank {
    std::optional<Ready> ready;
    Millis last_heard = 0;  // any frame
    Millis last_moved = 0;  // steps_done or progress changed
    Heartbeat heartbeat;    // the newest
  };

  State(const CoordinatorConfig& config, Millis now);

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
  bool on_result(int rank, std::span<const uint8_t> body);
  bool on_heartbeat(int rank, std::span<const uint8_t> body);
  bool on_failed(int rank, std::span<const uint8_t> body);
  bool answers_plan(const StepResult& result) const;
  void start_serving();

  // watch.cc
  void on(TickEvent& event);
  void watch_loading();
  void watch_heartbeats();
  void watch_progress();
  bool all_beat(Millis at) const;

  bool serving() const { return life == Life::kServing || life == Life::kDraining; }
  bool over() const { return life == Life::kStopped || life == Life::kFailed; }
  // Ranks of one stage are neighbours (parallel/topology.h).
  int stage_of(int rank) const { return rank / config.engine.tp; }
  int num_stages() const { return config.engine.pp; }

  const CoordinatorConfig config;
  Life life = Life::kLoading;
  bool welcomed = false;
  Millis now;
  Millis load_began;
  Millis last_tick;
  Millis last_step = 0;  // of the newest commit, or when work came to an idle replica
  std::vector<Action> out;
  std::vector<Rank> ranks;
  std::optional<Scheduler> scheduler;          // from kServing on
  std::set<RequestId> open;                    // submitted, accepted and not ended
  uint64_t num_issued = 0;                     // plans
  std::vector<uint64_t> results;               // per stage: plans it has answered
  std::deque<std::vector<uint16_t>> expected;  // per plan in flight: slots with output, in order
  uint64_t compute_us = 0;
  uint64_t comm_us = 0;
  uint64_t idle_us = 0;
};

}  // namespace millrace
