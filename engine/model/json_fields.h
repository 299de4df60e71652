// JSON files of a model folder and the metadata of GGUF files, read strictly: depth and size
// bounded, no key twice, and every number taken by name with its range. Pure; used while loading.
#pragma once

#include <boost/json/value.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/one_line.h"
#include "engine/base/status.h"

namespace millrace {

// Parses `text` into an object. `where` names the file in errors. Throws Error(kModel): not UTF-8,
// not JSON, deeper than 64 levels, more than four million values, a key given twice, a number
// beyond a double, not an object.
boost::json::object parse_json_object(std::string_view text, const std::string& where);

// Typed access to one object's fields. A field that is null counts as absent. Throws Error(kModel)
// naming file and field when the type or the range is wrong. The object outlives it.
class JsonFields {
 public:
  // `prefix` stands before every name: "llama." in GGUF files.
  JsonFields(const boost::json::object& object, std::string where, std::string prefix = "")
      : object_(object), where_(std::move(where)), prefix_(std::move(prefix)) {}

  const std::string& where() const { return where_; }
  const boost::json::value* find(std::string_view name) const;  // null when absent or null
  bool holds(std::string_view name) const { return object_.contains(name); }
  std::optional<int64_t> integer(std::string_view name, int64_t min, int64_t max) const;
  std::optional<double> number(std::string_view name, double min, double max) const;
  std::optional<bool> boolean(std::string_view name) const;
  std::optional<std::string> text(std::string_view name) const;
  // Arrays; the texts are the object's own.
  std::optional<std::vector<std::string_view>> texts(std::string_view name) const;
  std::optional<std::vector<double>> numbers(std::string_view name) const;
  int32_t required(std::string_view name, int32_t max) const;  // an integer from 1 on
  // For fields that change what a layer computes: fails unless absent or `neutral`, where a switch
  // that is off counts as 0.
  void refuse_unless(std::string_view name, double neutral) const;
  // "<where>: <message>", as Error(kModel).
  template <typename... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) const {
    throw Error(ExitCode::kModel,
        one_line(where_ + ": " + fmt::format(format, std::forward<Args>(args)...)));
  }

 private:
  template <typename T>
  std::optional<T> as(std::string_view name, std::string_view expected) const;
  [[noreturn]] void wrong(
      std::string_view name, const boost::json::value& value, std::string_view expected) const;

  const boost::json::object& object_;
  std::string where_;
  std::string prefix_;
};

}  // namespace millrace
