// The replica's state machine: requests in, plans out, results in. Pure: (event, now) -> actions;
// the shell (launch/cluster/engine.h) owns sockets, clocks and threads, the simulator and the tests
// drive the same code. One thread.
//
// Life: kLoading (waits for every rank's Ready) -> kServing -> kDraining -> kStopped; or kFailed
// from anywhere when a rank is lost.
#pragma once

#include <memory>
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
  Millis load_timeout = 600'000;     // until every rank is ready
  Millis heartbeat_timeout = 5'000;  // no heartbeat from a rank
  Millis hang_timeout = 5'000;       // work in flight and a rank's progress stands still
};

// --- events
struct SubmitEvent {
  RequestId id;
  Request request;
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

struct CoordinatorStats {
  SchedulerStats scheduler;
  bool ready = false;
  bool healthy = false;  // ready, not failed, every rank beats
  // Sums over steps and stages since ready.
  uint64_t compute_us = 0;
  uint64_t comm_us = 0;
  uint64_t idle_us = 0;
};

class Coordinator {
 public:
  Coordinator(const CoordinatorConfig& config, Millis now);
  ~Coordinator();

  // Appends what the shell must do, in order. The first event of all, whatever it is, makes it send
  // kWelcome; the shell sends that to links that come later too.
  void handle(Event event, Millis now, std::vector<Action>& actions);
  CoordinatorStats stats(Millis now) const;
  std::string check_integrity() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace millrace
