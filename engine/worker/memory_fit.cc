#include "engine/worker/memory_fit.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>

#include "engine/base/status.h"
#include "engine/base/thread_pool.h"
#include "engine/kernels/cuda/workspace.h"

namespace millrace {

namespace {

// What only a GPU's driver and libraries know, as they were on an H100 (80 GB, driver 580, CUDA
// 13): of the memory that nvidia-smi tells, what the driver keeps and a context takes;
constexpr int64_t kDriverBytes = int64_t{1018} << 20;
// its multiprocessors;
constexpr int32_t kNumSms = 132;
// assumed, not measured yet: NCCL's buffers, of the communicator of all ranks and for each peer
// that a stage sends to or receives from.
constexpr int64_t kNcclBytes = int64_t{256} << 20, kNcclPeerBytes = int64_t{32} << 20;

// Stands in a tensor-parallel group whose other ranks are not there.
class AbsentGroup final : public DeviceComm {
 public:
  explicit AbsentGroup(const Topology& topology) : topology_(topology) {}
  int rank() const override { return topology_.tp_rank(); }
  int size() const override { return topology_.tp(); }
  void all_reduce_sum(const TensorView& /*x*/) override {}
  void all_gather_cols(const TensorView& /*mine*/, std::span<const int64_t> /*cols*/,
      const TensorView& /*out*/) override {}

 private:
  const Topology topology_;
};

bool is_gpu(const EngineConfig& engine) { return engine.device == DeviceKind::kCuda; }

// As plugin.cc sets up: cuBLASLt, attention, then NCCL with its room for gathered columns.
int64_t kernel_bytes(const BackendConfig& config) {
  const cuda::AttentionLimits limits{config.attention, config.activation,
      config.engine.max_num_seqs, config.engine.max_num_batched_tokens, kNumSms};
  return cuda::kGemmWorkspaceBytes + cuda::stream_workspace_bytes() +
         cuda::AttentionLayout(limits).end;
}
int64_t comm_bytes(const BackendConfig& config) {
  const Topology& t = config.topology;
  if (!is_gpu(config.engine) || t.num_ranks() == 1) return 0;
  const int64_t gathered = config.engine.max_num_seqs * config.vocab_size * int64_t{4};
  return kNcclBytes + (t.tp() > 1 ? gathered + one_shot_inbox_bytes(t.tp()) : 0) +
         (t.pp() > 1 ? 2 * kNcclPeerBytes : 0);
}

class CountingBackend final : public Backend {
 public:
  CountingBackend(const BackendConfig& config, int64_t program)
      : comm_bytes_(millrace::comm_bytes(config)),
        device_(is_gpu(config.engine)
                    ? make_counting_device(config.activation, kernel_bytes(config) + comm_bytes_)
                    : make_counting_device(std::nullopt, program)),
        tp_(config.topology),
        pool_(1),
        ops_(make_cpu_ops(pool_)) {}

  Device& device() override { return *device_; }
  Ops& ops() override { return *ops_; }
  DeviceComm& tp() override { return tp_; }
  PeerComm* peers() override { return nullptr; }
  int64_t comm_bytes() const override { return comm_bytes_; }
  std::string description() const override { return "counting"; }

 private:
  const int64_t comm_bytes_;
  const std::unique_ptr<Device> device_;
  AbsentGroup tp_;
  ThreadPool pool_;
  const std::unique_ptr<Ops> ops_;
};

double gib(int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

// The cache, of as many blocks on every rank, and what comes after it.
void fit_cache(std::deque<LoadedStage>& stages, const EngineConfig& engine, int64_t memory,
    int64_t host_used, LayoutFit* fit) {
  uint32_t blocks = UINT32_MAX;
  for (LoadedStage& stage : stages) {
    const int64_t used = is_gpu(engine) ? stage.device().used_bytes() + kDriverBytes : host_used;
    fit->longest = stage.max_position();
    fit->needed = std::max(fit->needed, used + stage.free_for_one());
    blocks = std::min(blocks, stage.count_blocks(memory - used));
  }
  int64_t together = 0;
  for (LoadedStage& stage : stages) {
    stage.make_executor(blocks);
    fit->ranks.push_back(stage.memory_plan());
    const int64_t rank = fit->ranks.back().together();
    together = is_gpu(engine) ? std::max(together, rank + kDriverBytes) : together + rank;
  }
  const int64_t tokens = fit->ranks.front().kv_tokens;
  fit->reason = together > memory
                    ? fmt::format("takes {:.2f} GiB, lower --kv-cache-memory", gib(together))
                : tokens < fit->longest
                    ? fmt::format("the KV cache has room for {} tokens, one sequence may have {}",
                          tokens, fit->longest)
                    : "";
}

}  // namespace

LayoutFit fit_layout(const std::shared_ptr<const Checkpoint>& checkpoint,
    const EngineConfig& engine, int64_t memory, int64_t program) {
  LayoutFit fit{.tp = engine.tp, .pp = engine.pp};
  std::deque<LoadedStage> stages;
  const int ranks = engine.tp * engine.pp;
  int64_t host_used = 0;
  try {
    for (int rank = 0; rank < ranks; ++rank) {
      const Topology topology(engine.tp, engine.pp, rank);
      stages.emplace_back(checkpoint, engine, topology, ranks,
          std::make_unique<CountingBackend>(backend_config(*checkpoint, engine, topology), program),
          [] {});
      host_used += stages.back().decoder().weight_bytes() + program;
    }
    fit_cache(stages, engine, memory, host_used, &fit);
  } catch (const Error& error) {
    if (error.exit_code() != ExitCode::kLayout && error.exit_code() != ExitCode::kOutOfMemory) {
      throw;
    }
    fit.reason = error.what();
  }
  return fit;
}

LayoutFit propose_layout(const std::shared_ptr<const Checkpoint>& checkpoint, EngineConfig engine,
    int num_gpus, int64_t gpu_memory) {
  LayoutFit best;
  for (int ranks = 1; ranks <= num_gpus; ++ranks) {
    for (engine.pp = 1; engine.pp <= ranks; ++engine.pp) {
      if (ranks % engine.pp != 0) continue;
      engine.tp = ranks / engine.pp;
      const LayoutFit fit = fit_layout(checkpoint, engine, gpu_memory, /*program=*/0);
      if (fit.reason.empty()) return fit;
      if (best.needed == 0 || (fit.needed > 0 && fit.needed < best.needed)) best = fit;
    }
  }
  return best;
}

}  // namespace millrace
