// Which sequences run in the next step, and with how many tokens. Pure and deterministic: no
// clock, no thread, no socket; the same calls give the same plans. First come, first served.
//
// A sequence has num_computed and num_tokens; plan() advances the first, commit() the second, and
// the difference is what is in flight (docs/architecture.md, the step contract).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/protocol/step.h"
#include "scheduler/block_pool.h"

namespace millrace {

struct SchedulerConfig {
  int32_t pp = 1;  // stages; lanes are pp + 1
  int32_t block_size = 16;
  uint32_t num_blocks = 0;
  int32_t max_num_seqs = 64;
  int32_t max_num_batched_tokens = 2048;
  int32_t max_queue = 1024;  // waiting requests beyond which add() says overloaded
};

// What commit() reports for one request.
struct Emission {
  RequestId id = 0;
  std::vector<SampledToken> tokens;
  FinishReason finish = FinishReason::kNone;
  Status status;  // not ok with kError only
};

struct SchedulerStats {
  int32_t running = 0;
  int32_t waiting = 0;
  uint32_t free_blocks = 0;
  uint32_t num_blocks = 0;
  uint64_t steps = 0;
  uint64_t tokens_computed = 0;
  uint64_t tokens_emitted = 0;
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerConfig& config);
  ~Scheduler();

  // Queues a validated request. Not ok: kOverloaded when the queue is full, kInvalidArgument when
  // prompt + max_tokens can never fit the pool. `id` is new.
  Status add(RequestId id, Request request);
  // The request gets no further emission. In flight, its slot and blocks come back once the last
  // plan that names it is committed. Unknown ids are ignored (it may have just finished).
  void cancel(RequestId id);

  // The next plan, or nothing: no lane is free, or nothing can run. A plan without rows keeps apart
  // the plans of decoding sequences that are too few for the stages (scheduler/README.md). `failed`
  // receives requests that can never run (nothing in flight and nothing admitted: the oldest ends,
  // so the engine moves; call again).
  std::optional<StepPlan> plan(std::vector<Emission>& failed);
  // Takes the last stage's result of the oldest uncommitted plan; CHECKs the order.
  std::vector<Emission> commit(const StepResult& result);

  int32_t num_in_flight() const;  // plans issued and not committed
  bool idle() const;              // no request known and nothing in flight
  SchedulerStats stats() const;
  // free + held = total, every table within bounds, every count consistent; "" or what is broken.
  std::string check_integrity() const;

 private:
  struct Sequence;
  struct InFlight;
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace millrace
