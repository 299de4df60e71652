// `millrace bench scheduler`: what a step costs the coordinator's core, measured on this machine
// with the real Coordinator and frames, without ranks. Called from the main thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/protocol/engine_config.h"

namespace millrace {

struct SchedulerBenchConfig {
  EngineConfig engine;                                 // tp, pp, max_num_batched_tokens, block_size
  std::vector<int32_t> sequences = {256, 1024, 4096};  // decoding at once; one run each
  int32_t num_steps = 1000;                            // that count, of each run
};

struct SchedulerBenchReport {
  std::string table;  // for people
  std::string json;   // one object
};

// A step: the last stage's result decoded and committed, the next plan made and encoded; results
// of other stages count too. Microseconds of this thread's CPU time. Throws Error(kUsage) when
// `sequences` leaves no room for prompts in a step.
SchedulerBenchReport bench_scheduler(const SchedulerBenchConfig& config);

}  // namespace millrace
