// `millrace bench latency|throughput|interference`: the engine's own speed, without HTTP and
// without text, each figure beside its physical limit measured in the same run. Called from the
// main thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/model/checkpoint.h"
#include "launch/api/engine_api.h"
#include "launch/bench/limits.h"
#include "launch/bench/step_idle.h"

namespace millrace {

struct BenchConfig {
  int32_t input_len = 512;      // prompt tokens of each request, random ids from `seed`
  int32_t output_len = 64;      // tokens generated, stop ids ignored; at least 2
  int32_t batch_size = 1;       // latency: requests at once
  int32_t num_prompts = 64;     // throughput: requests in all
  double length_variation = 0;  // throughput: of both lengths (LengthConfig)
  double rate = 0;              // throughput: requests a second (Poisson); 0: all at once
  int32_t num_warmup = 1;       // latency: runs not counted
  int32_t num_iters = 5;        // latency: runs counted; medians are reported
  int32_t num_decoders = 64;    // interference: sequences that decode, ...
  int32_t context = 1024;       // ... from this prompt on
  int32_t prompt_len = 16384;   // interference: the prompt that comes
  uint64_t seed = 0;
  std::string save_model;  // a file for the step-time models (saved_model.h)
};

struct BenchReport {
  std::string table;  // for people
  std::string json;   // one object
};

// `idle` is told of every step of every rank (LaunchConfig::on_trace).
// Throws Error(kUsage) when input_len + output_len exceeds `max_model_len`, and
// Error(kWorkerLost) when the engine ends underneath.
BenchReport bench_latency(const BenchConfig& config, EngineApi& engine, const Checkpoint& model,
    const Limits& limits, int32_t max_model_len, StepIdle& idle);
BenchReport bench_throughput(const BenchConfig& config, EngineApi& engine, const Checkpoint& model,
    const Limits& limits, int32_t max_model_len);
// What a long prompt does to the time between tokens of sequences that decode, and they to its
// first token. num_warmup rounds are not counted.
BenchReport bench_interference(
    const BenchConfig& config, EngineApi& engine, int32_t vocab_size, int32_t max_model_len);

// What rank 0 measured (EngineConfig::bench) beside the limits of one device: the longer of reading
// and computing, or of the link between two where `comm`.
BenchReport report_figures(const std::vector<Figure>& figures, const DeviceLimits& limits,
    bool comm, const std::string& title);

}  // namespace millrace
