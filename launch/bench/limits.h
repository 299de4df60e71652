// The physical limits that figures stand beside: constants measured in the same run, and what a
// step must read and compute at least.
#pragma once

#include <cstdint>

#include "engine/model/checkpoint.h"
#include "engine/protocol/engine_config.h"
#include "engine/worker/backend.h"

namespace millrace {

// Of all ranks of a stage together: tensor-parallel ranks read and compute at once, stages one
// after the other.
struct Limits {
  DeviceLimits device;
  double weight_bytes = 0;    // streamed by one decode step: not the input embedding
  double kv_bytes = 0;        // of the cache per token, all layers
  double flop_per_token = 0;  // of the linear layers and the head
  double attention_flop = 0;  // per token and key

  // Seconds of a decode step of `rows` sequences with `context` tokens each:
  // max(2 P B / F, W / BW) + B ctx KV / BW.
  double decode_step_s(double rows, double context) const;
  // Tokens per second of prompts of `length` tokens; 0 where compute was not measured.
  double prefill_tokens_per_s(double length) const;
};

// Of one device (on the CPU: of the host), before the engine takes its memory.
DeviceLimits measure_device(DeviceKind device, bool with_peers);

// Measures the devices (before the engine takes their memory) and counts what `model` needs.
Limits measure_limits(const Checkpoint& model, const EngineConfig& engine);

}  // namespace millrace
