#include "engine/worker/loaded_stage.h"

#include <algorithm>

#include "engine/base/status.h"
#include "engine/model/cost.h"

namespace millrace {

namespace {

// Room on a GPU for what comes after the cache: graphs, and what libraries load and connect when
// they are first called.
constexpr int64_t kLaterBytes = int64_t{3} << 29;

double mib(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

// "auto" on a GPU: bf16 for what was stored so, else f16, which keeps more of a quantized weight.
DType activation_dtype(const Checkpoint& checkpoint, ActivationType asked) {
  switch (asked) {
    case ActivationType::kFloat32: return DType::kF32;
    case ActivationType::kFloat16: return DType::kF16;
    case ActivationType::kBFloat16: return DType::kBF16;
    case ActivationType::kAuto: break;
  }
  const TensorInfo* stored = checkpoint.find("model.embed_tokens.weight");
  return stored != nullptr && stored->dtype == DType::kBF16 ? DType::kBF16 : DType::kF16;
}

}  // namespace

BackendConfig backend_config(
    const Checkpoint& checkpoint, const EngineConfig& engine, const Topology& topology) {
  const ModelConfig& model = checkpoint.config();
  BackendConfig config;
  config.topology = topology;
  config.engine = engine;
  config.activation = activation_dtype(checkpoint, engine.dtype);
  config.attention = shard_attention(model, engine.tp, topology.tp_rank());
  config.hidden_size = model.hidden_size;
  config.vocab_size = model.vocab_size;
  return config;
}

LoadedStage::LoadedStage(std::shared_ptr<const Checkpoint> checkpoint, const EngineConfig& config,
    const Topology& topology, int local_size, std::unique_ptr<Backend> backend,
    const std::function<void()>& on_tensor)
    : config_(config),
      topology_(topology),
      local_size_(local_size),
      checkpoint_(std::move(checkpoint)),
      stage_(cut_stages(model(), config_)[static_cast<size_t>(topology_.pp_rank())]),
      max_position_(config_.max_model_len > 0 ? config_.max_model_len : model().max_position),
      backend_(std::move(backend)),
      device_(backend_->device()),
      tp_(backend_->tp()),
      pp_(topology_, backend_->peers()),
      setup_used_(device_.used_bytes()),
      setup_allocated_(device_.allocated_bytes()),
      decoder_(*checkpoint_, stage_,
          DecoderLimits{config_.max_num_batched_tokens, config_.max_num_seqs, max_position_},
          backend_->ops(), tp_, device_, on_tensor) {}

int64_t LoadedStage::bytes_per_block() const {
  return KvCache::bytes_per_block(device_.activation_dtype(), decoder_.num_layers(),
      decoder_.attention_shape(), config_.block_size);
}

uint32_t LoadedStage::count_blocks(int64_t free) const {
  const int64_t bytes = config_.kv_cache_bytes > 0
                            ? config_.kv_cache_bytes
                            : std::min(static_cast<int64_t>(static_cast<double>(free) * kv_share()),
                                  free - (device_.asynchronous() ? kLaterBytes : 0));
  const int64_t blocks =
      std::min(bytes / bytes_per_block(), blocks_of_one() * config_.max_num_seqs);
  if (blocks < 1) {
    throw Error(ExitCode::kOutOfMemory,
        "the KV cache has room for no block: {:.1f} MiB for blocks of {:.1f} "
        "MiB; raise --kv-cache-memory or free memory",
        mib(bytes), mib(bytes_per_block()));
  }
  return static_cast<uint32_t>(blocks);
}

int64_t LoadedStage::free_for_one() const {
  const int64_t bytes = blocks_of_one() * bytes_per_block();
  return std::max(static_cast<int64_t>(static_cast<double>(bytes) / kv_share()) + 1,
      bytes + (device_.asynchronous() ? kLaterBytes : 0));
}

Executor& LoadedStage::make_executor(uint32_t num_blocks) {
  num_blocks_ = num_blocks;
  return executor_.emplace(
      topology_, config_, max_position_, num_blocks, decoder_, backend_->ops(), tp_, pp_, device_);
}

MemoryPlan LoadedStage::memory_plan() const {
  MemoryPlan plan;
  plan.weights = decoder_.weight_bytes();
  plan.kv = int64_t{num_blocks_ + 1} * bytes_per_block();
  plan.comm = backend_->comm_bytes();
  plan.workspace = std::max<int64_t>(0, setup_used_ - plan.comm) + device_.allocated_bytes() -
                   setup_allocated_ - plan.weights - plan.kv;
  if (!device_.asynchronous()) {
    plan.workspace +=
        cpu_scratch_bytes(cpu_threads(config_, local_size_), config_.max_num_batched_tokens,
            decoder_.quantized_cols(), stage_.has_head ? model().vocab_size : 0);
  }
  plan.graphs = executor_->graph_bytes();
  plan.kv_tokens = int64_t{num_blocks_} * config_.block_size;
  return plan;
}

}  // namespace millrace
