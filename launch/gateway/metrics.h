// What the gateway counts and times, and all of it with the engine's figures as Prometheus text:
// every name as `millrace:` and, where vLLM has the figure, as `vllm:` too. Nothing is labelled by
// request, user or prompt. Thread-safe.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "launch/api/openai.h"
#include "scheduler/scheduler.h"

namespace millrace {

struct Serving;

class Histogram {
 public:
  // `bounds`: the buckets' upper ends, rising; of static lifetime.
  explicit Histogram(std::span<const double> bounds)
      : bounds_(bounds), counts_(bounds.size() + 1) {}
  void observe(double value, uint64_t times = 1);
  // Appends the samples of one metric; `labels` without braces.
  void write(std::string& text, const std::string& name, std::string_view labels) const;

 private:
  std::span<const double> bounds_;
  std::vector<std::atomic<uint64_t>> counts_;  // per bucket, not summed up; the last is above all
  std::atomic<double> sum_ = 0;
};

class Metrics {
 public:
  Metrics();
  // An HTTP answer with this status was begun.
  void count_answer(int status);
  // `open_calls` and `connections` as they are now.
  std::string text(const Serving& serving, size_t open_calls, size_t connections) const;

 private:
  friend class CallTimes;
  // In the order of their names in metrics.cc. Times in seconds.
  enum Measure {
    kFirstToken,
    kBetweenTokens,
    kDecode,
    kWhole,
    kPromptTokens,
    kOutputTokens,
    kMaxTokens,
    kChoices
  };
  void observe(Measure measure, double value, uint64_t times = 1) {
    histograms_[measure].observe(value, times);
  }

  std::deque<Histogram> histograms_;  // by Measure
  std::atomic<uint64_t> prompt_tokens_ = 0;
  std::atomic<uint64_t> output_tokens_ = 0;
  std::array<std::atomic<uint64_t>, 5> finished_{};   // choices, by FinishReason
  std::array<std::atomic<uint64_t>, 600> answers_{};  // by status
};

// The clock of one call, from the arrival of its request on. One thread at a time.
class CallTimes {
 public:
  using Clock = std::chrono::steady_clock;

  void arrive() { arrived_ = Clock::now(); }
  // The call is handed to the engine.
  void begin(const ApiCall& call, Metrics& metrics);
  // A choice got `num_tokens`, and its end unless `finish` is kNone.
  void note(size_t choice, size_t num_tokens, FinishReason finish, Metrics& metrics);
  int64_t prompt_tokens() const { return prompt_tokens_; }
  int64_t output_tokens() const { return output_tokens_; }
  // The choices that have not ended end as cancelled.
  void abandon(Metrics& metrics);

 private:
  struct Choice {
    Clock::time_point first, last;
    size_t num_tokens = 0;
    bool ended = false;
  };
  Clock::time_point arrived_;
  std::vector<Choice> choices_;
  int64_t prompt_tokens_ = 0;
  int64_t output_tokens_ = 0;  // of all choices
};

}  // namespace millrace
