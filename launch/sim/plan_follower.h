// What the ranks of a replica say to its coordinator when there is no model: frames as workers send
// them, with made-up tokens. One thread.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/protocol/messages.h"
#include "engine/protocol/step.h"
#include "launch/sim/stage_cost.h"

namespace millrace {

Bytes ready_frame(int rank, uint32_t num_blocks, uint32_t epoch);
Bytes started_frame(uint32_t epoch);

// Keeps each slot's position, as every rank does.
class PlanFollower {
 public:
  explicit PlanFollower(int num_slots) : slots_(static_cast<size_t>(num_slots)) {}

  // The work of the next plan in order.
  LayerWork follow(const StepPlan& plan);
  // The result of `plan` as stage `stage` gives it, the times left at 0.
  static StepResult answer(const StepPlan& plan, int stage, bool is_last);

 private:
  struct Slot {
    int64_t num_computed = 0;
    int64_t num_prompt = 0;
  };
  std::vector<Slot> slots_;
};

}  // namespace millrace
