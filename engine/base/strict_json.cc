#include "engine/base/strict_json.h"

#include <algorithm>
#include <boost/json/basic_parser_impl.hpp>
#include <boost/json/value_stack.hpp>
#include <cmath>
#include <vector>

#include "engine/base/one_line.h"

namespace millrace {
namespace {

namespace json = boost::json;
using boost::json::error_code;

[[noreturn]] void refuse(const std::string& why) { throw JsonError(why); }

// Builds the value while it watches what Boost.JSON lets pass. It throws out of the parser.
class Handler {
 public:
  static constexpr size_t max_object_size = size_t(-1);
  static constexpr size_t max_array_size = size_t(-1);
  static constexpr size_t max_key_size = size_t(-1);
  static constexpr size_t max_string_size = size_t(-1);

  explicit Handler(const JsonLimits& limits) : limits_(limits) {}

  bool on_document_begin(error_code&) {
    stack_.reset();
    return true;
  }
  bool on_document_end(error_code&) { return true; }
  bool on_array_begin(error_code&) { return true; }
  bool on_array_end(size_t n, error_code&) {
    stack_.push_array(n);
    return counted();
  }
  bool on_object_begin(error_code&) { return true; }
  bool on_object_end(size_t n, error_code&) {
    // The object's own keys are the last n: those of objects inside it are gone already. Sorting
    // costs n log n whatever the keys are, which a hash table chosen by a client would not.
    const auto first = keys_.end() - static_cast<std::ptrdiff_t>(n);
    std::sort(first, keys_.end());
    if (const auto twice = std::adjacent_find(first, keys_.end()); twice != keys_.end())
      refuse("the key '" + one_line(twice->substr(0, 64)) + "' is given twice");
    keys_.erase(first, keys_.end());
    stack_.push_object(n);
    return counted();
  }
  bool on_key_part(json::string_view s, size_t n, error_code& error) {
    key_.append(s.data(), s.size());
    return on_string_part(s, n, error);
  }
  bool on_key(json::string_view s, size_t, error_code&) {
    key_.append(s.data(), s.size());
    keys_.push_back(std::move(key_));
    key_.clear();
    if (keys_.size() > limits_.max_keys) refuse("it has too many keys");
    stack_.push_key(s);
    return true;
  }
  bool on_string_part(json::string_view s, size_t, error_code&) {
    stack_.push_chars(s);
    return true;
  }
  bool on_string(json::string_view s, size_t, error_code&) {
    stack_.push_string(s);
    return counted();
  }
  bool on_number_part(json::string_view, error_code&) { return true; }
  bool on_int64(int64_t i, json::string_view digits, error_code&) {
    if (i == 0 && digits.front() == '-' && !limits_.negative_zero) refuse("-0 is not an integer");
    stack_.push_int64(i);
    return counted();
  }
  bool on_uint64(uint64_t u, json::string_view, error_code&) {
    stack_.push_uint64(u);
    return counted();
  }
  bool on_double(double d, json::string_view, error_code&) {
    if (!std::isfinite(d)) refuse("a number is too large");
    stack_.push_double(d);
    return counted();
  }
  bool on_bool(bool b, error_code&) {
    stack_.push_bool(b);
    return counted();
  }
  bool on_null(error_code&) {
    stack_.push_null();
    return counted();
  }
  bool on_comment_part(json::string_view, error_code&) { return true; }
  bool on_comment(json::string_view, error_code&) { return true; }

  json::value release() { return stack_.release(); }

 private:
  bool counted() {
    if (++num_values_ > limits_.max_values) refuse("it holds too many values");
    return true;
  }

  const JsonLimits limits_;
  json::value_stack stack_;
  std::string key_;                // of which only parts have come
  std::vector<std::string> keys_;  // of all open objects, outermost first
  size_t num_values_ = 0;
};

}  // namespace

json::value parse_strict_json(std::string_view text, const JsonLimits& limits) {
  json::parse_options options;
  options.max_depth = limits.max_depth;
  json::basic_parser<Handler> parser(options, limits);
  error_code error;
  const size_t used = parser.write_some(/*more=*/false, text.data(), text.size(), error);
  if (error == json::error::too_deep)
    refuse("it is more than " + std::to_string(limits.max_depth) + " levels deep");
  if (error) refuse(error.message() + " at byte " + std::to_string(used));
  if (used < text.size()) refuse("something follows the value at byte " + std::to_string(used));
  return parser.handler().release();
}

}  // namespace millrace
