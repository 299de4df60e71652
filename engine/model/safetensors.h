// The header of a .safetensors file, read strictly: the format's own rules and the stricter ones
// of the README. Used while opening.
#pragma once

#include <string>
#include <unordered_map>

#include "engine/model/stored_model.h"

namespace millrace {

// Every tensor of `file`, by name; StoredTensor::file is `file_index`. Throws Error(kModel) naming
// the file and the tensor.
std::unordered_map<std::string, StoredTensor> read_safetensors(const File& file, size_t file_index);

}  // namespace millrace
