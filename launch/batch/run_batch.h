// Offline jobs: OpenAI batch lines in, result lines out, with a progress bar on standard error.
#pragma once

#include <string>

#include "launch/api/engine_api.h"
#include "launch/api/model_context.h"

namespace millrace {

struct BatchConfig {
  std::string input;            // JSONL; "-" is standard input
  std::string output;           // JSONL; written beside and renamed when complete
  int32_t max_in_flight = 256;  // requests in the engine at once
};

struct BatchSummary {
  int64_t completed = 0;
  int64_t failed = 0;  // lines whose answer is an error
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  double seconds = 0;
};

// Each custom_id once, in order of completion; a bad line becomes an error line. Throws Error
// (kInput) for files that cannot be read or written, duplicate custom_ids (before any GPU work),
// and Error(kWorkerLost) when the engine ends underneath.
BatchSummary run_batch(const BatchConfig& config, EngineApi& engine, const ModelContext& model);

}  // namespace millrace
