// What a rank holds of a model: backend, decoder and executor, made in the order in which they take
// memory, and the plan of that memory. The worker runs it; `millrace fit` makes it on a device that
// only counts (memory_fit.h). Compute thread.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "engine/model/checkpoint.h"
#include "engine/model/decoder.h"
#include "engine/worker/backend.h"
#include "engine/worker/executor.h"
#include "parallel/pp_link.h"
#include "parallel/tp_ops.h"

namespace millrace {

// Of one rank, in bytes of its device. workspace: on the CPU with the program itself.
struct MemoryPlan {
  int64_t weights = 0, workspace = 0, comm = 0, graphs = 0, kv = 0;
  int64_t kv_tokens = 0;
  int64_t together() const { return weights + workspace + comm + graphs + kv; }
};

// The shapes that a rank computes, before its weights are there; no groups yet.
BackendConfig backend_config(
    const Checkpoint& checkpoint, const EngineConfig& config, const Topology& topology);

class LoadedStage {
 public:
  // Loads the weights. local_size: ranks that share the CPU and its memory. on_tensor: as Decoder
  // has it. Throws Error.
  LoadedStage(std::shared_ptr<const Checkpoint> checkpoint, const EngineConfig& config,
      const Topology& topology, int local_size, std::unique_ptr<Backend> backend,
      const std::function<void()>& on_tensor);

  int64_t bytes_per_block() const;
  // Of the KV cache where so many bytes are free. Throws Error(kOutOfMemory) when there is none.
  uint32_t count_blocks(int64_t free) const;
  // Its inverse: bytes to be free for one sequence of max_position() tokens.
  int64_t free_for_one() const;
  // num_blocks: what all ranks have room for.
  Executor& make_executor(uint32_t num_blocks);
  MemoryPlan memory_plan() const;  // with an executor

  const ModelConfig& model() const { return checkpoint_->config(); }
  const Stage& stage() const { return stage_; }
  int32_t max_position() const { return max_position_; }  // longest sequence
  Backend& backend() const { return *backend_; }
  Device& device() const { return device_; }
  Decoder& decoder() { return decoder_; }

 private:
  double kv_share() const {
    return device_.kv_share() / (device_.asynchronous() ? 1 : local_size_);
  }
  int64_t blocks_of_one() const {
    return (max_position_ + config_.block_size - 1) / config_.block_size;
  }

  const EngineConfig config_;
  const Topology topology_;
  const int local_size_;
  const std::shared_ptr<const Checkpoint> checkpoint_;
  const Stage stage_;
  const int32_t max_position_;
  const std::unique_ptr<Backend> backend_;
  Device& device_;
  TpOps tp_;
  PpLink pp_;
  const int64_t setup_used_, setup_allocated_;  // of device memory, before the weights
  Decoder decoder_;
  uint32_t num_blocks_ = 0;
  std::optional<Executor> executor_;
};

}  // namespace millrace
