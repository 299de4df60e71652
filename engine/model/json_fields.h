// JSON files of a model folder, read strictly: depth and size bounded, no key twice, and every
// number taken by name with its range. Pure; used while loading.
#pragma once

#include <boost/json/value.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace millrace {

// Parses `text` into an object. `where` names the file in errors. Throws Error(kModel): not UTF-8,
// not JSON, deeper than 64 levels, a key given twice, a number beyond a double, not an object.
boost::json::object parse_json_object(std::string_view text, const std::string& where);

// Typed access to one object's fields. A field that is null counts as absent. Throws Error(kModel)
// naming file and field when the type or the range is wrong.
class JsonFields {
 public:
  JsonFields(const boost::json::object& object, std::string where)
      : object_(object), where_(std::move(where)) {}

  const std::string& where() const { return where_; }
  const boost::json::value* find(std::string_view name) const;  // null when absent or null
  bool holds(std::string_view name) const { return object_.contains(name); }
  std::optional<int64_t> integer(std::string_view name, int64_t min, int64_t max) const;
  std::optional<double> number(std::string_view name, double min, double max) const;
  std::optional<bool> boolean(std::string_view name) const;
  std::optional<std::string> text(std::string_view name) const;
  int64_t required_integer(std::string_view name, int64_t min, int64_t max) const;
  // "<where>: <message>", as Error(kModel).
  [[noreturn]] void fail(const std::string& message) const;

 private:
  const boost::json::object& object_;
  std::string where_;
};

}  // namespace millrace
