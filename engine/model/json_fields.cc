#include "engine/model/json_fields.h"

#include <fmt/format.h>

#include <boost/json/serialize.hpp>
#include <cmath>

#include "engine/base/status.h"
#include "engine/base/strict_json.h"

namespace millrace {

namespace {

namespace json = boost::json;

std::string shown(const json::value& value) {
  std::string text = json::serialize(value);
  if (text.size() > 60) text = text.substr(0, 60) + "...";
  return text;
}

}  // namespace

json::object parse_json_object(std::string_view text, const std::string& where) {
  json::value value;
  try {
    value = parse_strict_json(text, {.negative_zero = false});
  } catch (const JsonError& error) {
    throw Error(ExitCode::kModel,
        fmt::format("{} is not valid JSON: {}; copy or download it again", where, error.what()));
  }
  if (!value.is_object()) {
    throw Error(ExitCode::kModel, fmt::format("{} does not hold a JSON object", where));
  }
  return std::move(value.as_object());
}

const json::value* JsonFields::find(std::string_view name) const {
  const json::value* value = object_.if_contains(name);
  return value != nullptr && !value->is_null() ? value : nullptr;
}

void JsonFields::fail(const std::string& message) const {
  throw Error(ExitCode::kModel, fmt::format("{}: {}", where_, message));
}

std::optional<int64_t> JsonFields::integer(std::string_view name, int64_t min, int64_t max) const {
  const json::value* value = find(name);
  if (value == nullptr) return std::nullopt;
  json::error_code code;
  const auto number = value->is_double() ? 0 : value->to_number<int64_t>(code);
  if (!value->is_number() || value->is_double() || code || number < min || number > max) {
    fail(fmt::format("'{}' is {}, not an integer from {} to {}", name, shown(*value), min, max));
  }
  return number;
}

std::optional<double> JsonFields::number(std::string_view name, double min, double max) const {
  const json::value* value = find(name);
  if (value == nullptr) return std::nullopt;
  const double number = value->is_number() ? value->to_number<double>() : std::nan("");
  if (!(number >= min && number <= max)) {
    fail(fmt::format("'{}' is {}, not a number from {} to {}", name, shown(*value), min, max));
  }
  return number;
}

std::optional<bool> JsonFields::boolean(std::string_view name) const {
  const json::value* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_bool()) {
    fail(fmt::format("'{}' is {}, not true or false", name, shown(*value)));
  }
  return value->as_bool();
}

std::optional<std::string> JsonFields::text(std::string_view name) const {
  const json::value* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    fail(fmt::format("'{}' is {}, not a string", name, shown(*value)));
  }
  return std::string(value->as_string());
}

int64_t JsonFields::required_integer(std::string_view name, int64_t min, int64_t max) const {
  const std::optional<int64_t> value = integer(name, min, max);
  if (!value) fail(fmt::format("'{}' is missing", name));
  return *value;
}

}  // namespace millrace
