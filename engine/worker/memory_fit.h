// What the ranks of a layout would hold: a worker's own stage made on devices that only count, so
// that the plan cannot differ from a worker's. No GPU is needed, no weight is read.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/worker/loaded_stage.h"

namespace millrace {

struct LayoutFit {
  int tp = 1, pp = 1;
  std::string reason;             // why it does not fit; empty: it does
  std::vector<MemoryPlan> ranks;  // empty where the model cannot be cut so, or no KV block fits
  int64_t longest = 0;            // tokens that one sequence may have
  // Bytes of each GPU, or of the host, from which on one such sequence has room; 0: the model
  // cannot be cut so.
  int64_t needed = 0;
};

// Of a replica of engine.tp x engine.pp ranks on GPUs of `memory` bytes each, as their driver tells
// them, or together on a host of which so many are free. program: resident bytes of a CPU rank
// before its weights. Throws Error(kModel).
LayoutFit fit_layout(const std::shared_ptr<const Checkpoint>& checkpoint,
    const EngineConfig& engine, int64_t memory, int64_t program);

// Of layouts over up to num_gpus ranks the first that fits: as few ranks as can be and, of as many,
// the most tensor-parallel, whose ranks read their weights at the same time. If none does, the one
// that needs least of each GPU.
LayoutFit propose_layout(const std::shared_ptr<const Checkpoint>& checkpoint, EngineConfig engine,
    int num_gpus, int64_t gpu_memory);

}  // namespace millrace
