// A GGUF file (versions 2 and 3): its metadata and where its tensors lie. Every count and length
// is held against the file before memory is taken. Used while opening; values afterwards.
#pragma once

#include <boost/json/object.hpp>
#include <string>
#include <unordered_map>

#include "engine/base/file.h"
#include "engine/model/json_fields.h"
#include "engine/model/stored_model.h"

namespace millrace {

struct GgufFile {
  File file;
  boost::json::object metadata;  // the key-value pairs; integers of any width as 64 bits
  // By GGUF's names; shapes in Hugging Face's order (GGUF's reversed).
  std::unordered_map<std::string, StoredTensor> tensors;

  // Typed access to the pairs whose keys begin with `prefix`; not to outlive this.
  JsonFields fields(std::string prefix = "") const {
    return JsonFields(metadata, fmt::format("'{}'", file.path()), std::move(prefix));
  }
};

// Throws Error(kModel) naming the file and the place.
GgufFile read_gguf(const std::string& path);

}  // namespace millrace
