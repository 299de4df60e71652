// Log lines for programs to read: what happened, by name, with what is known of it.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "engine/base/log.h"

namespace millrace::log {

// From now on each line is a JSON object; `who` as for init(). Before other threads log.
void use_json(std::string_view who);
bool is_json();

struct Field {
  Field(std::string_view name, std::string_view text) : key(name), value(text), quoted(true) {}
  Field(std::string_view name, int64_t number) : key(name), value(fmt::format("{}", number)) {}
  Field(std::string_view name, double number) : key(name), value(fmt::format("{:.6g}", number)) {}

  std::string_view key;
  std::string value;
  bool quoted = false;
};

// "name key=value ...", or {"event": name, key: value, ...}. Texts may be a client's.
void event(Level level, std::string_view name, std::initializer_list<Field> fields);

}  // namespace millrace::log
