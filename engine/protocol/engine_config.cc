#include "engine/protocol/engine_config.h"

#include "engine/protocol/step.h"

namespace millrace {

namespace {

constexpr size_t kMaxPathBytes = 4096;
constexpr int64_t kMaxRanks = 65535;
constexpr int32_t kMaxSlots = 65535;

}  // namespace

bool within_limits(const EngineConfig& config) {
  const bool degrees_fit = config.tp >= 1 && config.pp >= 1 &&
                           static_cast<int64_t>(config.tp) * config.pp <= kMaxRanks &&
                           config.pp_layers.size() <= static_cast<size_t>(kMaxRanks);
  const bool blocks_fit =
      (config.block_size == 16 || config.block_size == 32 || config.block_size == 64) &&
      config.kv_cache_bytes >= 0;
  const bool steps_fit = config.max_num_seqs >= 1 && config.max_num_seqs <= kMaxSlots &&
                         config.max_num_batched_tokens >= 1 &&
                         config.max_num_batched_tokens <= kMaxRowTokens;
  return config.model_path.size() <= kMaxPathBytes && degrees_fit && blocks_fit && steps_fit &&
         config.max_model_len >= 0 && config.threads >= 0 && config.timeout_s >= 1 &&
         config.device <= DeviceKind::kCuda && config.dtype <= ActivationType::kBFloat16 &&
         config.bench <= BenchKind::kComm;
}

}  // namespace millrace
