// Who asks for what, and when: drawn from distributions or read from a trace. Pure but for the
// trace's file; the same seed gives the same requests.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace millrace {

struct Arrival {
  double at_s = 0;
  int32_t prompt_tokens = 1;
  int32_t output_tokens = 1;
};

struct LengthConfig {
  int32_t prompt_mean = 1024;
  int32_t output_mean = 256;
  double variation = 1;  // standard deviation over mean of both; 0: all alike
};

// `count` requests, all at time 0, of log-normal lengths, cut so that prompt and output together
// stay within `max_tokens`.
std::vector<Arrival> draw_lengths(
    const LengthConfig& lengths, int32_t count, int32_t max_tokens, uint64_t seed);
// `count` requests, all at time 0, of lengths that are each as likely from (1 - ratio) times the
// mean to (1 + ratio) times it.
std::vector<Arrival> draw_even_lengths(
    int32_t prompt_mean, int32_t output_mean, double ratio, int32_t count, uint64_t seed);
// Spreads them: `rate` requests a second, in their order. Gaps are gamma distributed with the shape
// `burstiness`: 1 is a Poisson process, less comes in bursts, more is more even.
void draw_times(std::vector<Arrival>& arrivals, double rate, uint64_t seed, double burstiness = 1);

// One JSON object a line: {"arrival_s": 0.25, "prompt_tokens": 812, "output_tokens": 64}, in any
// order of time; other keys are ignored. Sorted by time. Throws Error(kInput) naming file, line and
// key: also for requests beyond `max_tokens`, and for a file without requests.
std::vector<Arrival> read_trace(const std::string& path, int32_t max_tokens);

}  // namespace millrace
