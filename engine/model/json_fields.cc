#include "engine/model/json_fields.h"

#include <fmt/format.h>

#include <boost/json/serialize.hpp>
#include <boost/json/value_to.hpp>
#include <cmath>

#include "engine/base/strict_json.h"
#include "engine/model/families.h"

namespace millrace {

namespace json = boost::json;

// Sixteen bytes a value; the largest checkpoints have about 100,000 tensors of 9 values.
constexpr size_t kMaxValues = 4 << 20;

json::object parse_json_object(std::string_view text, const std::string& where) {
  json::value value;
  try {
    value = parse_strict_json(text, {.max_values = kMaxValues, .negative_zero = false});
  } catch (const JsonError& error) {
    throw Error(ExitCode::kModel, "{} is not valid JSON: {}; copy or download it again", where,
        error.what());
  }
  if (!value.is_object()) {
    throw Error(ExitCode::kModel, "{} does not hold a JSON object", where);
  }
  return std::move(value.as_object());
}

const json::value* JsonFields::find(std::string_view name) const {
  const json::value* value = object_.if_contains(prefix_ + std::string(name));
  return value != nullptr && !value->is_null() ? value : nullptr;
}

void JsonFields::wrong(
    std::string_view name, const json::value& value, std::string_view expected) const {
  std::string shown = json::serialize(value);
  if (shown.size() > 60) shown = shown.substr(0, 60) + "...";
  fail("'{}{}' is {}, not {}", prefix_, name, shown, expected);
}

std::optional<int64_t> JsonFields::integer(std::string_view name, int64_t min, int64_t max) const {
  const json::value* value = find(name);
  if (value == nullptr) return std::nullopt;
  json::error_code code;
  const auto number = value->is_double() ? 0 : value->to_number<int64_t>(code);
  if (!value->is_number() || value->is_double() || code || number < min || number > max) {
    wrong(name, *value, fmt::format("an integer from {} to {}", min, max));
  }
  return number;
}

std::optional<double> JsonFields::number(std::string_view name, double min, double max) const {
  const json::value* value = find(name);
  if (value == nullptr) return std::nullopt;
  const double number = value->is_number() ? value->to_number<double>() : std::nan("");
  if (!(number >= min && number <= max)) {
    wrong(name, *value, fmt::format("a number from {} to {}", min, max));
  }
  return number;
}

template <typename T>
std::optional<T> JsonFields::as(std::string_view name, std::string_view expected) const {
  const json::value* value = find(name);
  if (value == nullptr) return std::nullopt;
  auto held = json::try_value_to<T>(*value);
  if (!held) wrong(name, *value, expected);
  return *std::move(held);
}

std::optional<bool> JsonFields::boolean(std::string_view name) const {
  return as<bool>(name, "true or false");
}

std::optional<std::string> JsonFields::text(std::string_view name) const {
  return as<std::string>(name, "a string");
}

std::optional<std::vector<double>> JsonFields::numbers(std::string_view name) const {
  return as<std::vector<double>>(name, "an array of numbers");
}

std::optional<std::vector<std::string_view>> JsonFields::texts(std::string_view name) const {
  const json::value* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array()) wrong(name, *value, "an array of strings");
  std::vector<std::string_view> texts;
  for (const json::value& item : value->as_array()) {
    if (!item.is_string()) wrong(name, *value, "an array of strings");
    texts.emplace_back(item.as_string());
  }
  return texts;
}

int32_t JsonFields::required(std::string_view name, int32_t max) const {
  const auto value = integer(name, 1, max);
  if (!value) fail("'{}{}' is missing", prefix_, name);
  return static_cast<int32_t>(*value);
}

void JsonFields::refuse_unless(std::string_view name, double neutral) const {
  const json::value* value = find(name);
  if (value == nullptr) return;
  const bool is_neutral = value->is_bool()     ? value->as_bool() == (neutral != 0)
                          : value->is_number() ? value->to_number<double>() == neutral
                                               : false;
  if (is_neutral) return;
  fail("'{}{}' is set, which this build does not compute; use a model of a supported family ({})",
      prefix_, name, supported_families());
}

}  // namespace millrace
