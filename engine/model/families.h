// Model families as data: which tensors a decoder layer has and how it uses them. A new family of
// known layers is one entry of the table in families.cc.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/kernels/ops.h"
#include "engine/model/config.h"

namespace millrace {

class JsonFields;

// The norms of a layer's two blocks, by Hugging Face's names; empty: none. One before a block norms
// its input, one after it (post) what it adds to the hidden state.
struct NormNames {
  std::string_view attention, attention_post, mlp, mlp_post;
};

enum class QkNorm : uint8_t {
  kNone,
  kPerHead,  // each head by itself, weight [D]
  kWhole,    // all heads of the projection together, weight [Hq * D] and [Hkv * D]
};

// Which layers see a window of keys only, where config.json does not name them (layer_types).
enum class Windows : uint8_t {
  kNone,
  kEvery,     // all
  kSwitched,  // with use_sliding_window: those from max_window_layers on, or those without rope
  kPeriodic,  // all but the last of each period
};

// One entry: what differs between families. Switches read from config.json are in ModelConfig.
struct Family {
  std::string_view name;                    // ModelConfig::family, config.json's model_type
  std::string_view gguf_architecture = {};  // general.architecture; empty: GGUF calls it otherwise
  bool gguf_rope_interleaved = false;       // its GGUF files hold q and k permuted
  Activation activation = Activation::kSilu;
  NormNames norms = {.attention = "input_layernorm", .mlp = "post_attention_layernorm"};
  QkNorm qk_norm = QkNorm::kNone;
  bool norms_plus_one = false;         // a folder's norms hold w - 1; GGUF's hold w
  bool scaled_embedding = false;       // by sqrt(hidden_size)
  bool fused_projections = false;      // stored as qkv_proj and gate_up_proj
  bool qkv_bias = false;               // on q, k and v, always
  bool attention_bias_switch = false;  // attention_bias of config.json counts: on q, k, v and o
  bool mlp_bias_switch = false;        // mlp_bias counts
  Windows windows = Windows::kNone;
  int32_t window_period = 0;   // of Windows::kPeriodic
  int32_t no_rope_period = 0;  // the last layer of each period is not rotated; 0: all are
  // Fields of config.json that would be refused elsewhere, and count here.
  std::span<const std::string_view> fields = {};
  // What transformers assumes when config.json is silent.
  int32_t default_kv_heads = 0;  // 0: as many as heads
  int32_t default_head_dim = 0;  // 0: hidden / heads
  int32_t default_window = 0;    // 0: none
  bool default_tie = false;
  double default_eps = 1e-6;
  double default_theta = 10000;
  float default_attention_softcap = 0, default_logit_softcap = 0;

  bool reads(std::string_view field) const;
};

std::span<const Family> families();
const Family* find_family(std::string_view name);
const Family* find_family_by_gguf(std::string_view architecture);
// "llama, ..." for error messages.
std::string supported_families();

// The family of a config that was read.
const Family& family_of(const ModelConfig& config);

// Fills config.layers by the family's pattern; `period` as window_period or what the file says.
void set_layers(const Family& family, int32_t window, int32_t period, ModelConfig& config);

// Fills config.rope and config.local_rope, whose shape has been read, from a config.json in the
// spellings of transformers 4 and 5 (hf_rope.cc). Throws Error(kModel).
void read_ropes(const JsonFields& fields, const Family& family, ModelConfig& config);

// Every tensor a checkpoint of this config must have, with its shape: the loader's list and the
// reader's check. Names are Hugging Face's.
struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape;
};
std::vector<ExpectedTensor> expected_tensors(const ModelConfig& config);

}  // namespace millrace
