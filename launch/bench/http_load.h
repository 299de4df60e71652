// Requests sent over HTTP at their times to any server of OpenAI's completions, and what came back
// when. One thread of coroutines; called from the main thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launch/bench/workload.h"

namespace millrace {

struct HttpTarget {
  std::string base_url = "http://127.0.0.1:8000";
  std::string endpoint = "/v1/completions";
  std::string model;            // empty: the first of /v1/models
  std::string api_key;          // empty: none is sent
  int32_t vocab_size = 10'000;  // random ids of prompts lie below
  bool ignore_eos = false;      // sent with every request
  size_t max_open = 0;          // requests at a time; further ones wait; 0: no limit
  uint64_t seed = 0;            // of the ids
};

// Of one request. Times in seconds from the begin of the load on.
struct HttpOutcome {
  double sent_s = 0;
  std::vector<double> event_s;  // of each event with a choice, one or more tokens
  int64_t output_tokens = 0;    // of `usage`, else of `token_ids`, else one an event
  std::string error;            // empty: the stream came whole, to [DONE]
};

struct HttpLoad {
  std::vector<HttpOutcome> outcomes;  // by arrival
  double duration_s = 0;
  size_t most_open = 0;
  double most_late_s = 0;  // between a request's time and its sending, waiting for max_open apart
};

// Throws Error: kUsage for a URL that is none of http, kAddress when nobody answers at it before
// the load begins.
HttpLoad run_http_load(HttpTarget target, const std::vector<Arrival>& arrivals);

}  // namespace millrace
