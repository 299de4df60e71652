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
  double head_flop = 0;       // of these, the head's
  double attention_flop = 0;  // per token and key
  int stages = 1;             // of the pipeline

  // Seconds of a decode step of `rows` sequences with `context` tokens each:
  // max(2 P B / F, W / BW) + B ctx KV / BW.
  double decode_step_s(double rows, double context) const;
  // Seconds that a prompt of `length` tokens must compute; 0 where compute was not measured.
  double prompt_s(double length) const;
  // Seconds that a request adds where many run at once on all stages: its prompt, its output
  // tokens' products and its reads of the cache; weights are read meanwhile. 0 as above.
  double request_s(double input, double output) const;
};

// Of one device (on the CPU: of the host), before the engine takes its memory.
DeviceLimits measure_device(DeviceKind device, bool with_peers);

// Measures the devices (before the engine takes their memory) and counts what `model` needs.
Limits measure_limits(const Checkpoint& model, const EngineConfig& engine);

}  // namespace millrace
