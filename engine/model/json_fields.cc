#include "engine/model/json_fields.h"

#include <fmt/format.h>

#include <boost/json/basic_parser_impl.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <cmath>
#include <unordered_set>
#include <vector>

#include "engine/base/status.h"

namespace millrace {

namespace {

namespace json = boost::json;

constexpr size_t kMaxDepth = 64;

// Sees what json::parse would swallow: a key given twice, a number too large, "-0" as an integer.
struct StrictHandler {
  static constexpr size_t max_object_size = SIZE_MAX;
  static constexpr size_t max_array_size = SIZE_MAX;
  static constexpr size_t max_key_size = SIZE_MAX;
  static constexpr size_t max_string_size = SIZE_MAX;
  using Code = json::error_code;

  std::vector<std::unordered_set<std::string>> keys;  // of every open object
  std::string partial_key;
  std::string problem;

  bool refuse(std::string what, Code& code) {
    problem = std::move(what);
    code = json::error::extra_data;
    return false;
  }
  bool on_document_begin(Code&) { return true; }
  bool on_document_end(Code&) { return true; }
  bool on_object_begin(Code&) {
    keys.emplace_back();
    return true;
  }
  bool on_object_end(size_t, Code&) {
    keys.pop_back();
    return true;
  }
  bool on_array_begin(Code&) { return true; }
  bool on_array_end(size_t, Code&) { return true; }
  bool on_key_part(json::string_view part, size_t, Code&) {
    partial_key.append(part);
    return true;
  }
  bool on_key(json::string_view part, size_t, Code& code) {
    partial_key.append(part);
    const auto [key, fresh] = keys.back().insert(std::move(partial_key));
    partial_key.clear();
    return fresh || refuse(fmt::format("the key '{}' is given twice", *key), code);
  }
  bool on_string_part(json::string_view, size_t, Code&) { return true; }
  bool on_string(json::string_view, size_t, Code&) { return true; }
  bool on_number_part(json::string_view, Code&) { return true; }
  bool on_int64(int64_t value, json::string_view digits, Code& code) {
    return value != 0 || digits.front() != '-' || refuse("-0 is not an integer", code);
  }
  bool on_uint64(uint64_t, json::string_view, Code&) { return true; }
  bool on_double(double value, json::string_view digits, Code& code) {
    return std::isfinite(value) ||
           refuse(fmt::format("the number {} is too large", std::string_view(digits)), code);
  }
  bool on_bool(bool, Code&) { return true; }
  bool on_null(Code&) { return true; }
  bool on_comment_part(json::string_view, Code&) { return true; }
  bool on_comment(json::string_view, Code&) { return true; }
};

std::string shown(const json::value& value) {
  std::string text = json::serialize(value);
  if (text.size() > 60) text = text.substr(0, 60) + "...";
  return text;
}

}  // namespace

json::object parse_json_object(std::string_view text, const std::string& where) {
  json::parse_options options;
  options.max_depth = kMaxDepth;
  json::basic_parser<StrictHandler> checker(options);
  json::error_code code;
  const size_t used = checker.write_some(/*more=*/false, text.data(), text.size(), code);
  if (!code && used < text.size()) code = json::error::extra_data;
  if (code) {
    const std::string& problem = checker.handler().problem;
    throw Error(ExitCode::kModel,
                fmt::format("{} is not valid JSON: {} at byte {}; copy or "
                            "download it again",
                            where, problem.empty() ? code.message() : problem, used));
  }
  json::value value = json::parse(text, {}, options);
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
