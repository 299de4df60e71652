#include "launch/batch/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

namespace millrace {
namespace {

constexpr std::chrono::milliseconds kBarPeriod{200};
constexpr std::chrono::seconds kLinePeriod{5};
constexpr int64_t kBarWidth = 30;

double seconds_since(Progress::Clock::time_point start) {
  return std::chrono::duration<double>(Progress::Clock::now() - start).count();
}

std::string clock_time(double seconds) {
  const auto s = static_cast<int64_t>(seconds + 0.5);
  if (s >= 3600) return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
  return fmt::format("{}:{:02}", s / 60, s % 60);
}

}  // namespace

Progress::Progress(int64_t total, bool is_terminal) : total_(total), is_terminal_(is_terminal) {}

Progress::~Progress() {
  if (is_terminal_ && drawn_) std::fputc('\n', stderr);
}

std::string Progress::line(int64_t done, int64_t total, int64_t failed, int64_t completion_tokens,
    double seconds, bool with_bar) {
  std::string text;
  if (with_bar) {
    const int64_t filled = total > 0 ? kBarWidth * done / total : kBarWidth;
    text = fmt::format("[{:#<{}}{:.<{}}] ", "", filled, "", kBarWidth - filled);
  }
  text +=
      fmt::format("{}/{}  {} %  {:.1f} tokens/s", done, total, total > 0 ? 100 * done / total : 100,
          static_cast<double>(completion_tokens) / std::max(seconds, 1e-9));
  if (failed > 0) text += fmt::format("  {} failed", failed);
  if (done >= total) text += "  took " + clock_time(seconds);
  else if (done > 0)
    text += "  ETA " +
            clock_time(seconds / static_cast<double>(done) * static_cast<double>(total - done));
  return text;
}

void Progress::update(int64_t done, int64_t failed, int64_t completion_tokens) {
  const auto now = Clock::now();
  if (now - last_ < (is_terminal_ ? Clock::duration(kBarPeriod) : Clock::duration(kLinePeriod)))
    return;
  last_ = now;
  finish(done, failed, completion_tokens);
}

void Progress::finish(int64_t done, int64_t failed, int64_t completion_tokens) {
  drawn_ = true;
  const std::string text =
      line(done, total_, failed, completion_tokens, seconds_since(start_), is_terminal_);
  // The bar is written over itself; what a longer line left behind is erased.
  const std::string shown = is_terminal_ ? "\r" + text + "\x1b[K" : text + "\n";
  std::fputs(shown.c_str(), stderr);
  std::fflush(stderr);
}

}  // namespace millrace
