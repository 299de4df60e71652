// A GGUF model (versions 2 and 3), in one file or split over several: its metadata and where its
// tensors lie. Every count and length is held against the file before memory is taken. Used while
// opening; values afterwards.
#pragma once

#include <boost/json/object.hpp>
#include <string>
#include <unordered_map>

#include "engine/base/file.h"
#include "engine/model/json_fields.h"
#include "engine/model/stored_model.h"

namespace millrace {

struct GgufFile {
  std::vector<File> files;       // the parts in order; never empty
  boost::json::object metadata;  // the first's key-value pairs; integers of any width as 64 bits
  // By GGUF's names, of all parts; shapes in Hugging Face's order (GGUF's reversed).
  std::unordered_map<std::string, StoredTensor> tensors;

  // Typed access to the pairs whose keys begin with `prefix`; not to outlive this.
  JsonFields fields(std::string prefix = "") const {
    return JsonFields(metadata, fmt::format("'{}'", files[0].path()), std::move(prefix));
  }
};

// `path`: the file, or the first part of a split model; the others lie beside it, named as
// llama-gguf-split does (NAME-00001-of-00003.gguf). Throws Error(kModel) naming the file and the
// place.
GgufFile read_gguf(const std::string& path);

}  // namespace millrace
