#include "engine/base/check.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>

namespace millrace {

namespace {
std::atomic<int> scope_rank{-1};
std::atomic<uint64_t> scope_step{0};
}  // namespace

void set_check_scope(int rank) { scope_rank = rank; }
void set_check_step(uint64_t step) { scope_step = step; }

void check_failed(
    std::string_view expression, std::string_view message, std::source_location where) {
  std::string scope;
  if (scope_rank >= 0)
    scope = fmt::format(" (rank {}, step {})", scope_rank.load(), scope_step.load());
  const std::string line = fmt::format("millrace: bug: CHECK failed: {}{}{} at {}:{}{}\n",
      expression, message.empty() ? "" : ": ", message, where.file_name(), where.line(), scope);
  std::fputs(line.c_str(), stderr);
  std::fflush(stderr);
  std::abort();
}

}  // namespace millrace
