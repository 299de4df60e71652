// A replica without a model: executes plans in order on a slot table of its own, and watches what
// the step contract promises to a worker. The token at a position is a function of the request's
// first id and the position, so what a request must answer is known before it runs.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/base/hash.h"
#include "engine/protocol/slot_table.h"
#include "scheduler/scheduler.h"

namespace millrace {

// Token ids a fake model samples from: small, so that stops are hit often.
inline constexpr int32_t kFakeVocabulary = 40;
// What the model samples at `position` of the request whose prompt begins with `key`; -1: the
// logits are not finite.
int32_t fake_token(int32_t key, int64_t position);

class FakeReplica {
 public:
  explicit FakeReplica(const SchedulerConfig& config);
  // Records a failure of the test for every broken promise.
  StepResult run(const StepPlan& plan);

 private:
  struct Slot {
    int32_t key = 0;
    std::vector<uint64_t> contents;    // of ids [0, i], known: admitted, then sampled
    std::vector<uint64_t> sampled_in;  // the plan that sampled id num_admitted + i
    int64_t num_admitted = 0;
    std::vector<int32_t> prompt;
    void know(int32_t id) {
      contents.push_back(
          hash_combine(contents.empty() ? 0 : contents.back(), static_cast<uint64_t>(id)));
    }
    int64_t num_ids() const { return static_cast<int64_t>(contents.size()); }
  };
  struct Cell {            // what a position of a block holds
    uint64_t content = 0;  // of the ids up to it
    int64_t position = -1;
  };
  void run_row(const StepPlan& plan, const Row& row, StepResult& result);
  Cell& cell(uint16_t slot, int64_t position);

  SchedulerConfig config_;
  SlotTable table_;
  std::vector<Slot> slots_;
  std::vector<Cell> cells_;
};

}  // namespace millrace
