// JSON as a client may send it (engine/base/strict_json.h, within these bounds). Any thread.
#pragma once

#include <boost/json/value.hpp>
#include <string_view>

namespace millrace {

inline constexpr size_t kMaxJsonDepth = 64;
inline constexpr size_t kMaxJsonKeys = 2048;         // of the objects that are open at one place
inline constexpr size_t kMaxJsonValues = 2'000'000;  // in all: about 100 MB when parsed

// Throws RequestError(kInvalidArgument) saying what is wrong with `text`.
boost::json::value parse_json(std::string_view text);
// The same for a call's body, which must be an object.
boost::json::object parse_json_object(std::string_view text);

}  // namespace millrace
