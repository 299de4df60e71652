// JSON from outside, of clients and of model files: RFC 8259, bounded in depth and size, no key
// twice in one object, no number beyond a double. Boost.JSON alone keeps the last of two keys and
// turns 1e400 into Infinity. Pure; any thread.
#pragma once

#include <boost/json/value.hpp>
#include <stdexcept>
#include <string_view>

namespace millrace {

struct JsonLimits {
  size_t max_depth = 64;
  size_t max_keys = size_t(-1);    // of the objects that are open at one place
  size_t max_values = size_t(-1);  // in all
  bool negative_zero = true;       // whether -0 is an integer
};

// What is wrong with a text, as half a sentence.
class JsonError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws JsonError.
boost::json::value parse_strict_json(std::string_view text, const JsonLimits& limits);

}  // namespace millrace
