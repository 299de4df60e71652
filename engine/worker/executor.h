// Executes plans on one rank, one after another: reads the plan into the slot table, builds the
// step's input, runs this stage, hands on what the next stage or the first one needs, samples on
// the last. Compute thread only.
//
// Budget of a step on the CPU: no allocation of device memory; waits only for the stage before
// (hidden states), for sampled ids of plan n - pp, and in the tensor-parallel sums.
#pragma once

#include <atomic>
#include <deque>
#include <vector>

#include "engine/core/device.h"
#include "engine/model/decoder.h"
#include "engine/protocol/engine_config.h"
#include "engine/protocol/slot_table.h"
#include "engine/protocol/step.h"
#include "engine/worker/kv_cache.h"
#include "engine/worker/slot_tokens.h"
#include "parallel/pp_link.h"
#include "parallel/topology.h"

namespace millrace {

class Executor {
 public:
  // What is passed by reference outlives the executor.
  Executor(const Topology& topology, const EngineConfig& config, int32_t max_position,
      uint32_t num_blocks, Decoder& decoder, Ops& ops, TpOps& tp, PpLink& pp, Device& device);

  // Runs one plan. `progress` ticks once per layer. The result has rows on the last stage only.
  // Throws Error when the plan does not follow from the slot table (a lost or foreign plan).
  StepResult run(const StepPlan& plan, std::atomic<uint64_t>& progress);

 private:
  // Sampled rows of a plan whose ids this rank has not received yet.
  struct PendingIds {
    uint64_t sequence;
    std::vector<std::pair<uint16_t, uint32_t>> slots;  // slot, its generation
  };
  struct StepInput {
    std::vector<int32_t> ids;                   // [T], first stage only
    std::vector<int32_t> cu_tokens;             // [S + 1]
    std::vector<int32_t> positions;             // [T]
    std::vector<const uint32_t*> block_tables;  // [S]
    std::vector<int32_t> output_rows;           // token row of each row with output
    std::vector<uint16_t> output_slots;
  };

  void receive_ids(uint64_t up_to_sequence);
  void apply(const StepPlan& plan);
  void build_input(const StepPlan& plan);
  void run_stage(int lane, const TensorView& hidden, std::atomic<uint64_t>& progress);
  void sample(int lane, const TensorView& hidden, StepResult& result);

  Topology topology_;
  int32_t max_position_;
  Decoder& decoder_;
  Ops& ops_;
  TpOps& tp_;
  PpLink& pp_;
  SlotTable table_;
  SlotTokens tokens_;
  KvCache cache_;
  std::vector<Tensor> lane_hidden_;  // f32 [max tokens, H] per lane
  std::deque<PendingIds> pending_ids_;
  StepInput input_;
  std::chrono::nanoseconds waited_for_stage_{0};
};

}  // namespace millrace
