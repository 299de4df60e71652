#include "engine/base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <iterator>

#include "engine/base/one_line.h"
#include "engine/base/status.h"

namespace millrace::log {

namespace {

std::atomic<Level> threshold{Level::kInfo};

spdlog::logger& logger() {
  static const auto instance = [] {
    auto made = spdlog::stderr_color_mt("millrace");
    made->set_level(spdlog::level::trace);  // enabled() decides
    made->set_pattern("%H:%M:%S.%e %^%L%$ %v");
    return made;
  }();
  return *instance;
}

}  // namespace

void init(Level level, std::string_view who) {
  threshold = level;
  const std::string scope = who.empty() ? "" : fmt::format("[{}] ", who);
  logger().set_pattern(fmt::format("%H:%M:%S.%e %^%L%$ {}%v", scope));
}

Level level_from_name(std::string_view name) {
  constexpr std::string_view kNames[] = {"debug", "info", "warning", "error", "off"};
  const auto* found = std::ranges::find(kNames, name);
  if (found != std::end(kNames)) return static_cast<Level>(found - kNames);
  throw Error(
      ExitCode::kUsage, "unknown log level '{}': use debug, info, warning, error or off", name);
}

bool enabled(Level level) { return level >= threshold.load(std::memory_order_relaxed); }

void write(Level level, std::string_view message) {
  if (!enabled(level)) return;
  constexpr spdlog::level::level_enum kLevels[] = {spdlog::level::debug, spdlog::level::info,
      spdlog::level::warn, spdlog::level::err, spdlog::level::off};
  logger().log(kLevels[static_cast<size_t>(level)], one_line(message));
}

}  // namespace millrace::log
