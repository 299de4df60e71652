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

}  // namespace millrace
