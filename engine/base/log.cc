#include "engine/base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <memory>

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
  if (name == "debug") return Level::kDebug;
  if (name == "info") return Level::kInfo;
  if (name == "warning") return Level::kWarning;
  if (name == "error") return Level::kError;
  if (name == "off") return Level::kOff;
  throw Error(
      ExitCode::kUsage, "unknown log level '{}': use debug, info, warning, error or off", name);
}

bool enabled(Level level) { return level >= threshold.load(std::memory_order_relaxed); }

void write(Level level, std::string_view message) {
  if (!enabled(level)) return;
  switch (level) {
    case Level::kDebug: logger().debug(message); break;
    case Level::kInfo: logger().info(message); break;
    case Level::kWarning: logger().warn(message); break;
    default: logger().error(message); break;
  }
}

}  // namespace millrace::log
