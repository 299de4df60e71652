// What a reader finds on disk, as data: the common ground of folders and GGUF files. Built while
// opening, then owned by the Checkpoint (checkpoint.cc), const.
#pragma once

#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/base/file.h"
#include "engine/model/checkpoint.h"

namespace millrace {

class JsonFields;

// Where a tensor lies. Its bytes [offset, offset + bytes) have been checked to be in the file.
struct StoredTensor {
  TensorInfo info;
  std::string type_name;  // as the file calls it
  bool readable = false;  // false: a type without kernels; info.dtype and the range mean nothing
  size_t file = 0;        // index into StoredModel::files
  uint64_t offset = 0;    // bytes from the file's start
  uint64_t bytes = 0;
};

struct StoredModel {
  ModelConfig config;
  std::string tokenizer_json;
  std::string chat_template;
  std::string bos_token;
  std::string eos_token;
  std::vector<File> files;
  std::unordered_map<std::string, StoredTensor> tensors;  // by Hugging Face's names
};

// What a file's type name ("BF16", "Q8_0") is to us; none: a type without kernels.
std::optional<DType> readable_dtype(std::string_view type_name);

// Elements of `shape`, or -1 when they are too many to be counted in 62 bits or a size is negative.
int64_t checked_count(const std::vector<int64_t>& shape);

// The tensors of a .safetensors file by name, its header read strictly: the format's own rules and
// the stricter ones of the README. StoredTensor::file is `file_index`. Throws Error(kModel) naming
// the file and the tensor.
std::unordered_map<std::string, StoredTensor> read_safetensors(const File& file, size_t file_index);

// The text of tokenizer.json made from a GGUF file's vocabulary (GgufFile::fields()), so that one
// tokenizer library serves both kinds of model; empty when the file has no vocabulary. Throws
// Error(kModel) for a tokenizer.ggml.model or .pre we do not know, and for contradictory
// vocabularies. `vocab_size`: rows of the embedding, which bounds the ids.
std::string make_tokenizer_json(const JsonFields& metadata, int32_t vocab_size);

// A folder in Hugging Face's layout (folder.cc) and a GGUF file (gguf_model.cc). Throw
// Error(kModel). The tensors are not yet held against the config: open_checkpoint does that.
StoredModel read_folder(const std::string& path, bool with_weights = true);
StoredModel read_gguf_model(const std::string& path);

}  // namespace millrace
