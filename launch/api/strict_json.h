// JSON as a client may send it: RFC 8259, at most 64 levels deep, no key twice in one object, no
// number beyond a double. Boost.JSON alone keeps the last of two keys and turns 1e400 into
// Infinity. A pure function; any thread.
#pragma once

#include <boost/json/value.hpp>
#include <string_view>

namespace millrace {

inline constexpr size_t kMaxJsonDepth = 64;
inline constexpr size_t kMaxJsonKeys = 1024;         // in one object
inline constexpr size_t kMaxJsonValues = 2'000'000;  // in all: about 100 MB when parsed

// Throws RequestError(kInvalidArgument) saying what is wrong with `text`.
boost::json::value parse_json(std::string_view text);

}  // namespace millrace
