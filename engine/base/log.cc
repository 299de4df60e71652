#include "engine/base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <iterator>

#include "engine/base/json_text.h"
#include "engine/base/log_event.h"
#include "engine/base/one_line.h"
#include "engine/base/status.h"

namespace millrace::log {

namespace {

std::atomic<Level> threshold{Level::kInfo};
std::atomic<bool> json_lines{false};

spdlog::logger& logger() {
  static const auto instance = [] {
    auto made = spdlog::stderr_color_mt("millrace");
    made->set_level(spdlog::level::trace);  // enabled() decides
    made->set_pattern("%H:%M:%S.%e %^%L%$ %v");
    return made;
  }();
  return *instance;
}

void write_line(Level level, std::string_view line) {
  if (!enabled(level)) return;
  constexpr spdlog::level::level_enum kLevels[] = {spdlog::level::debug, spdlog::level::info,
      spdlog::level::warn, spdlog::level::err, spdlog::level::off};
  logger().log(kLevels[static_cast<size_t>(level)], line);
}

std::string quoted(std::string_view text) {
  std::string out;
  append_json_string(out, valid_utf8(one_line(text)));
  return out;
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
  if (is_json()) write_line(level, "\"message\":" + quoted(message));
  else write_line(level, one_line(message));
}

void use_json(std::string_view who) {
  json_lines = true;
  const std::string scope = who.empty() ? "" : fmt::format(R"("who":"{}",)", who);
  logger().set_pattern(
      fmt::format(R"({{"time":"%Y-%m-%dT%H:%M:%S.%eZ","level":"%l",{}%v}})", scope),
      spdlog::pattern_time_type::utc);
}

bool is_json() { return json_lines; }

void event(Level level, std::string_view name, std::initializer_list<Field> fields) {
  if (!enabled(level)) return;
  std::string line = is_json() ? fmt::format(R"("event":"{}")", name) : std::string(name);
  for (const Field& field : fields) {
    const std::string& value = field.value;
    if (is_json())
      line += fmt::format(R"(,"{}":{})", field.key, field.quoted ? quoted(value) : value);
    else line += fmt::format(" {}={}", field.key, one_line(value));
  }
  write_line(level, line);
}

}  // namespace millrace::log
