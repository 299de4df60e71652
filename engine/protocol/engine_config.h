// What every rank of a replica must agree on, sent in the handshake. Plain values with a codec.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/bytes.h"

namespace millrace {

enum class DeviceKind : uint8_t { kAuto, kCpu, kCuda };
// How activations are held on a GPU; the CPU computes in fp32.
enum class ActivationType : uint8_t { kAuto, kFloat32, kFloat16, kBFloat16 };

// What ranks measure when they have loaded, instead of serving.
enum class BenchKind : uint8_t { kNone, kKernels, kComm };

struct EngineConfig {
  std::string model_path;  // a folder or a .gguf file, the same path on every host
  int32_t tp = 1;
  int32_t pp = 1;
  std::vector<int32_t> pp_layers;         // layers per stage by hand; empty: cut by cost
  int32_t block_size = 16;                // tokens per KV block, a power of two from 16 to 64
  int64_t kv_cache_bytes = 0;             // per rank; 0: from free memory
  int32_t max_num_seqs = 64;              // slots
  int32_t max_num_batched_tokens = 2048;  // per step, at most kMaxRowTokens
  int32_t max_model_len = 0;              // prompt + output; 0: the model's own
  int32_t threads = 0;                    // compute threads per rank; 0: cores / ranks on the host
  int32_t timeout_s = 60;                 // of every wait between ranks
  DeviceKind device = DeviceKind::kAuto;
  ActivationType dtype = ActivationType::kAuto;
  bool dummy_weights = false;  // random weights of the config's shapes, no file is read
  bool tune = false;           // measure GEMM algorithms that the cache does not know
  bool profile = false;        // every rank tells its times of every step (trace.h)
  BenchKind bench = BenchKind::kNone;
};

void fields(auto& io, Is<EngineConfig> auto& config) {
  io(config.model_path, config.tp, config.pp, config.pp_layers, config.block_size,
      config.kv_cache_bytes, config.max_num_seqs, config.max_num_batched_tokens,
      config.max_model_len, config.threads, config.timeout_s, config.device, config.dtype,
      config.dummy_weights, config.tune, config.profile, config.bench);
}
// Every number in the range its comment names. Whether pp_layers fits the model is for the cut.
bool within_limits(const EngineConfig& config);

}  // namespace millrace
