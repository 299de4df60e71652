// How far a batch has come, on standard error: a bar where somebody looks at it, else a line now
// and then. Main thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace millrace {

class Progress {
 public:
  using Clock = std::chrono::steady_clock;

  // `total` lines.
  Progress(int64_t total, bool is_terminal);
  // Ends the bar's line.
  ~Progress();
  Progress(const Progress&) = delete;

  // Draws when it is time to.
  void update(int64_t done, int64_t failed, int64_t completion_tokens);
  void finish(int64_t done, int64_t failed, int64_t completion_tokens);

  // "[####......]  40/100  40 %  812.3 tokens/s  ETA 0:42"; the bar only for terminals.
  static std::string line(int64_t done, int64_t total, int64_t failed, int64_t completion_tokens,
      double seconds, bool with_bar);

 private:
  int64_t total_;
  bool is_terminal_;
  bool drawn_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_ = start_;
};

}  // namespace millrace
