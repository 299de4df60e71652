// Model families as data: which tensors a decoder layer has and how it uses them. A new family of
// known layers is one entry of the table in families.cc.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/config.h"

namespace millrace {

// One entry: what differs between families of this decoder shape (pre-norm attention, pre-norm
// gated MLP). Switches read from config.json (biases, tied heads) are in ModelConfig.
struct Family {
  std::string_view name;                    // ModelConfig::family
  std::string_view hf_model_type;           // config.json's model_type
  std::string_view gguf_architecture = {};  // general.architecture; empty: GGUF calls it otherwise
  bool gguf_rope_interleaved = false;       // its GGUF files hold q and k permuted
  bool has_bias_switches = false;           // attention_bias and mlp_bias of config.json count
  // What transformers assumes when config.json is silent.
  int32_t default_kv_heads = 0;        // 0: as many as heads
  int32_t default_sliding_window = 0;  // 0: none
};

std::span<const Family> families();
const Family* find_family_by_hf(std::string_view model_type);
const Family* find_family_by_gguf(std::string_view architecture);
// "llama, ..." for error messages.
std::string supported_families();

// Every tensor a checkpoint of this config must have, with its shape: the loader's list and the
// reader's check. Names are Hugging Face's.
struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape;
};
std::vector<ExpectedTensor> expected_tensors(const ModelConfig& config);

}  // namespace millrace
