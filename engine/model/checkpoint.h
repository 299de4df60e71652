// A model on disk: its config, its tensors by Hugging Face name, its tokenizer and template.
// Two kinds: a folder (config.json, *.safetensors) and a GGUF file. Opening reads headers only;
// every rank then reads its own slices. const and thread-safe after opening.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/core/tensor.h"
#include "engine/model/config.h"
#include "parallel/partition.h"

namespace millrace {

struct TensorInfo {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  // as Hugging Face writes it: [out, in] for a linear
};

class Checkpoint {
 public:
  virtual ~Checkpoint() = default;

  const ModelConfig& config() const { return config_; }
  // tokenizer.json's bytes (made from the vocabulary for GGUF); empty when the model has none.
  const std::string& tokenizer_json() const { return tokenizer_json_; }
  // Jinja source; empty when the model has none.
  const std::string& chat_template() const { return chat_template_; }
  const std::string& bos_token() const { return bos_token_; }
  const std::string& eos_token() const { return eos_token_; }
  // Last part of the path without .gguf: the default served model name.
  const std::string& name() const { return name_; }
  // True when no file holds the tensors: they are to be made up.
  bool is_dummy() const { return is_dummy_; }

  // Null when there is no such tensor. Names are Hugging Face's:
  // "model.layers.3.self_attn.q_proj.weight".
  virtual const TensorInfo* find(const std::string& tensor) const = 0;
  // Reads rows x cols of a tensor (1-D: rows only, cols = {0, 1}) into `to`, as stored and
  // contiguous. A column range that splits a quantized block cannot be read as stored: see
  // readable_as_stored. Throws Error(kModel) naming file and tensor.
  virtual void read(const std::string& tensor, Range rows, Range cols, uint8_t* to) const = 0;

 protected:
  ModelConfig config_;
  std::string tokenizer_json_;
  std::string chat_template_;
  std::string bos_token_;
  std::string eos_token_;
  std::string name_;
  bool is_dummy_ = false;
};

// False when `cols` begins or ends inside a quantized block: the caller widens whole rows to f32.
bool readable_as_stored(const TensorInfo& info, Range cols);

// Opens a folder or a .gguf file. Throws Error(kModel) in one plain sentence: what is missing,
// torn, unknown or contradictory, and the remedy. The tensor set and shapes are checked against
// the config before anything is read. `dummy`: a folder's config.json is enough; its tensors count
// as BF16 and read() is not to be called.
std::shared_ptr<const Checkpoint> open_checkpoint(const std::string& path, bool dummy = false);

}  // namespace millrace
