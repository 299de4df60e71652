#include "engine/protocol/engine_config.h"

#include <algorithm>

#include "engine/protocol/step.h"

namespace millrace {

namespace {

constexpr size_t kMaxPathBytes = 4096;
constexpr int64_t kMaxRanks = 65535;
constexpr int32_t kMaxSlots = 65535;

}  // namespace

void put(ByteWriter& out, const EngineConfig& config) {
  out.put_string(config.model_path);
  out.put(config.tp);
  out.put(config.pp);
  out.put_array(std::span<const int32_t>(config.pp_layers));
  out.put(config.block_size);
  out.put(config.kv_cache_bytes);
  out.put(config.max_num_seqs);
  out.put(config.max_num_batched_tokens);
  out.put(config.max_model_len);
  out.put(config.threads);
  out.put(config.timeout_s);
  out.put(config.device);
  out.put(config.dtype);
  out.put(config.dummy_weights);
  out.put(config.tune);
}

EngineConfig get_engine_config(ByteReader& in) {
  EngineConfig config;
  config.model_path = in.get_string();
  config.tp = in.get<int32_t>();
  config.pp = in.get<int32_t>();
  config.pp_layers = in.get_array<int32_t>();
  config.block_size = in.get<int32_t>();
  config.kv_cache_bytes = in.get<int64_t>();
  config.max_num_seqs = in.get<int32_t>();
  config.max_num_batched_tokens = in.get<int32_t>();
  config.max_model_len = in.get<int32_t>();
  config.threads = in.get<int32_t>();
  config.timeout_s = in.get<int32_t>();
  config.device = in.get<DeviceKind>();
  config.dtype = in.get<ActivationType>();
  config.dummy_weights = in.get<uint8_t>() != 0;
  config.tune = in.get<uint8_t>() != 0;
  return config;
}

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
         config.device <= DeviceKind::kCuda && config.dtype <= ActivationType::kBFloat16;
}

}  // namespace millrace
