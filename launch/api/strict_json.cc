#include "launch/api/strict_json.h"

#include <fmt/format.h>

#include "engine/base/status.h"
#include "engine/base/strict_json.h"

namespace millrace {

boost::json::value parse_json(std::string_view text) {
  try {
    return parse_strict_json(
        text, {.max_depth = kMaxJsonDepth, .max_keys = kMaxJsonKeys, .max_values = kMaxJsonValues});
  } catch (const JsonError& error) {
    throw RequestError(ErrorCode::kInvalidArgument,
        fmt::format("The body is not acceptable JSON: {}.", error.what()));
  }
}

boost::json::object parse_json_object(std::string_view text) {
  boost::json::value value = parse_json(text);
  if (!value.is_object())
    throw RequestError(ErrorCode::kInvalidArgument, "The body must be a JSON object.");
  return std::move(value.get_object());
}

}  // namespace millrace
