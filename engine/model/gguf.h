// A GGUF file (versions 2 and 3): its metadata and where its tensors lie. Every count and length
// is held against the file before memory is taken. Used while opening; values afterwards.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "engine/base/file.h"
#include "engine/model/stored_model.h"

namespace millrace {

using GgufStrings = std::vector<std::string>;
using GgufNumbers = std::vector<double>;  // of any numeric element type, and of booleans
using GgufValue =
    std::variant<int64_t, uint64_t, double, bool, std::string, GgufStrings, GgufNumbers>;

// Typed access to the key-value pairs. Throws Error(kModel) naming file and key when the type or
// the range is wrong.
class GgufMetadata {
 public:
  explicit GgufMetadata(std::string path) : path_(std::move(path)) {}

  // False when the key is there already.
  bool add(std::string key, GgufValue value);
  const GgufValue* find(const std::string& key) const;
  std::optional<int64_t> integer(const std::string& key, int64_t min, int64_t max) const;
  std::optional<double> number(const std::string& key, double min, double max) const;
  std::optional<bool> boolean(const std::string& key) const;
  std::optional<std::string> text(const std::string& key) const;
  // Null when absent.
  const GgufStrings* strings(const std::string& key) const;
  const GgufNumbers* numbers(const std::string& key) const;
  // "'<path>': <message>", as Error(kModel).
  [[noreturn]] void fail(const std::string& message) const;

 private:
  template <typename T>
  const T* as(const std::string& key, std::string_view type) const;

  std::string path_;
  std::unordered_map<std::string, GgufValue> values_;
};

struct GgufFile {
  File file;
  GgufMetadata metadata;
  // By GGUF's names; shapes in Hugging Face's order (GGUF's reversed).
  std::unordered_map<std::string, StoredTensor> tensors;
};

GgufFile read_gguf(const std::string& path);

}  // namespace millrace
