// `millrace simulate`: what a model on given GPUs would do under a load, without any of them.
// Called from the main thread.
#pragma once

#include <string>

#include "engine/protocol/engine_config.h"
#include "launch/bench/workload.h"
#include "scheduler/scheduler.h"

namespace millrace {

struct SimulateConfig {
  EngineConfig engine;  // tp, pp, pp_layers, limits; 0 sequences: 256 for each stage
  std::string shape;    // a folder with config.json, or a name under configs/shapes
  std::string gpu = "h200";
  std::string step_model;  // a file of write_step_model, instead of shape, gpu, degrees and limits
  int32_t gpus_per_host = 8;
  double network_gbit_per_s = 400;  // between hosts, one way, per GPU
  LengthConfig lengths;
  int32_t num_requests = 0;    // 0: 8 for each sequence that may run
  std::string trace;           // JSONL of read_trace, instead of lengths and rate
  double rate = 0;             // requests a second; 0: load times what the replicas can do
  double load = 0.8;           // of saturation, what a replica is to carry
  int32_t replicas = 0;        // 0: as many as the rate or the trace needs, else one
  double max_itl_stretch = 0;  // ReplicaConfig::max_stretch
  Balance balance = Balance::kTime;
  uint64_t seed = 0;
};

struct SimulateReport {
  std::string table;  // for people
  std::string json;   // one object
};

// The same config gives the same bytes. Throws Error: kUsage, kModel, kLayout, kOutOfMemory,
// kInput, each naming the flag or file.
SimulateReport run_simulation(const SimulateConfig& config);

}  // namespace millrace
