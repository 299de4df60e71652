// Executes plans on one rank, one after another: writes the step as the device reads it, runs this
// stage, hands on what the next stage or the first one needs, samples on the last. Compute thread
// only, but for the results (see there).
//
// Budget of a step on a GPU: one copy in, one graph launch (decode) or the stage's verbs (mixed),
// on the last stage two sampling launches, a gather between them where the vocabulary is sharded,
// and one copy out; two event records; no synchronization and no allocation. Prompt logprobs cost
// the head, these launches and a copy for every so many of their rows as may decode. On the CPU all
// is done when run() returns; it waits only for the stage before (hidden states), for sampled ids
// of plan n - pp, and in the tensor-parallel sums.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <vector>

#include "engine/core/device.h"
#include "engine/model/decoder.h"
#include "engine/protocol/engine_config.h"
#include "engine/protocol/slot_table.h"
#include "engine/protocol/step.h"
#include "engine/protocol/trace.h"
#include "engine/worker/kv_cache.h"
#include "parallel/pp_link.h"
#include "parallel/topology.h"

namespace millrace {

class Executor {
 public:
  // What is passed by reference outlives the executor.
  Executor(const Topology& topology, const EngineConfig& config, int32_t max_position,
      uint32_t num_blocks, Decoder& decoder, Ops& ops, TpOps& tp, PpLink& pp, Device& device);

  // Runs decode steps of padding rows at every captured batch size, then captures them: what is
  // set up on first use is set up here. Does nothing on the CPU. `progress` ticks once per layer.
  void warm_up(std::atomic<uint64_t>& progress);

  // Device memory that the captured steps take, about.
  int64_t graph_bytes() const;

  // Enqueues one plan. `progress` as above. Throws Error when the plan does not follow
  // from the slot table (a lost or foreign plan).
  void run(const StepPlan& plan, std::atomic<uint64_t>& progress);

  // Of run() number n (from 0 on; spacer plans count): whether its work is done, and what came of
  // it, with rows on the last stage only. Any one thread, for each n in order; a run() waits when
  // it is L results ahead.
  bool done(uint64_t n);
  StepResult result(uint64_t n);
  // With config.profile: its times, before its result is taken.
  StepTrace trace(uint64_t n);

 private:
  // What a step needs until its result is taken.
  struct Flight {
    uint64_t sequence = 0;
    std::vector<Row> outputs;               // the plan's rows that have some
    std::chrono::nanoseconds host_wait{0};  // in collectives that block the host
    Buffer upload;                          // host
    Buffer sampled;  // host: SampledRow of each token sampled, then of each scored
    std::unique_ptr<DeviceEvent> begin, ready, end;  // ready: the stage before was done
    std::unique_ptr<DeviceEvent> forward;            // layers and logits are done; profile alone
    StepTrace trace;                                 // what the host knows; profile alone
  };
  // Sampled rows of a plan whose ids have not been taken into the slots yet.
  struct PendingIds {
    uint64_t sequence;
    struct Place {
      uint16_t slot;
      uint32_t generation;  // of the slot: ids meant for a former tenant are dropped
      uint32_t position;
    };
    std::vector<Place> places;
  };

  void allocate(const EngineConfig& config, uint32_t num_blocks);
  void enqueue(const StepPlan& plan, Flight& flight, std::atomic<uint64_t>& progress);
  void apply(const StepPlan& plan);
  std::vector<PendingIds> take_pending(const StepPlan& plan);
  int64_t write_step(
      const StepPlan& plan, std::span<const PendingIds> arrived, int32_t rows, int32_t* words);
  BatchView batch_view(int32_t rows, int32_t tokens, int32_t singles, int32_t max_count) const;
  void remember_outputs(const StepPlan& plan, Flight& flight);
  size_t num_sampled(const Flight& flight) const;
  int32_t captured_size(const StepPlan& plan) const;
  void run_stage(const BatchView& batch, int32_t outputs, std::atomic<uint64_t>& progress);
  void sample(Flight& flight, int lane);
  void score(Flight& flight, int32_t tokens, std::atomic<uint64_t>& progress);
  StepHeader* header() const { return reinterpret_cast<StepHeader*>(step_.data()); }
  Flight& flight(uint64_t n) { return flights_[n % flights_.size()]; }

  Topology topology_;
  int32_t max_position_;
  int32_t max_rows_;
  int32_t max_tokens_;
  bool tunes_;  // EngineConfig::tune
  Decoder& decoder_;
  Ops& ops_;
  TpOps& tp_;
  PpLink& pp_;
  Device& device_;
  SlotTable table_;
  KvCache cache_;
  std::vector<uint32_t> generations_;      // per slot: admissions so far
  std::vector<uint8_t> needs_all_logits_;  // per slot: to draw for its tenant
  std::deque<PendingIds> pending_ids_;
  std::vector<Flight> flights_;  // L + 1, so that the last one before is still whole
  std::atomic<uint64_t> results_taken_{0};
  int64_t traced_end_ = 0;               // of the last step traced
  std::vector<int32_t> captured_sizes_;  // ascending

  // On the device.
  SlotState slots_;
  StepArrays arrays_;
  Buffer step_;                      // StepHeader and its sections
  Tensor hidden_;                    // act [max tokens, H], of the step that runs
  std::vector<Tensor> lane_hidden_;  // the same per lane, on its way between stages
  Tensor arrived_ids_;               // i32 [L, max rows]: sampled by each lane's plan
  Buffer sampled_;                   // SampledRow [max rows]
  std::vector<Buffer> buffers_;      // what the views above look at
};

}  // namespace millrace
