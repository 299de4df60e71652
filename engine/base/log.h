// Logging to standard error, one line each, for every thread. Prompts are never logged.
#pragma once

#include <fmt/format.h>

#include <string_view>

namespace millrace::log {

enum class Level { kDebug, kInfo, kWarning, kError, kOff };

// `who` stands in each line: "coordinator", "rank 3"; empty in a single process.
void init(Level level, std::string_view who);
Level level_from_name(std::string_view name);  // debug|info|warning|error|off; throws Error kUsage
bool enabled(Level level);
void write(Level level, std::string_view message);

template <typename... Args>
void debug(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::kDebug))
    write(Level::kDebug, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void info(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::kInfo)) write(Level::kInfo, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void warning(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::kWarning, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void error(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::kError, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace millrace::log
