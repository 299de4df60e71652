// A measured replica as a file: its step-time models and what it was served with, for
// `millrace simulate --step-model`. Any thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/coordinator/coordinator.h"

namespace millrace {

struct SavedModel {
  EngineConfig engine;  // degrees, steps, slots and context
  uint32_t num_blocks = 0;
  std::vector<StepModel> stages;
};

// Throw Error(kInput) naming the file and what is wrong with it.
void write_step_model(
    const std::string& path, const EngineConfig& engine, const SchedulerStats& stats);
SavedModel read_step_model(const std::string& path);

}  // namespace millrace
