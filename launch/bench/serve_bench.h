// `millrace bench serve`: a load on a running server, ours or another, with the flags and the JSON
// keys of `vllm bench serve`. Called from the main thread.
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "launch/bench/bench.h"
#include "launch/bench/http_load.h"

namespace millrace {

struct ServeBenchConfig {
  HttpTarget target;
  std::string host = "127.0.0.1";  // both instead of target.base_url, where that is empty
  int32_t port = 8000;
  int32_t num_prompts = 0;                                        // 0: the whole trace, else 1,000
  double request_rate = std::numeric_limits<double>::infinity();  // a second; infinity: all at once
  double burstiness = 1;                                          // draw_times
  int32_t input_len = 1024, output_len = 128;                     // draw_even_lengths
  double range_ratio = 0;
  std::string trace;                 // JSONL of read_trace, instead of lengths and rate
  std::vector<std::string> goodput;  // "ttft:200", "tpot:50", "e2el:10000": ms
};

struct ServeBenchReport {
  BenchReport report;
  size_t failed = 0;
  std::string error;  // of the first that failed
};

// Throws Error: kUsage naming the flag, kInput of the trace, and what run_http_load throws.
ServeBenchReport bench_serve(const ServeBenchConfig& config);

}  // namespace millrace
