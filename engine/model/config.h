// A model's shape as data, from config.json or from GGUF metadata: what the decoder, the cut and
// the memory plan need. Plain values; read once.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace millrace {

enum class RopeKind : uint8_t { kDefault, kLinear, kLlama3, kDynamicNtk, kYarn };

struct RopeConfig {
  RopeKind kind = RopeKind::kDefault;
  double theta = 10000.0;
  double factor = 1.0;
  double low_freq_factor = 1.0;          // llama3
  double high_freq_factor = 4.0;         // llama3
  int64_t original_max_position = 0;     // llama3, dynamic, yarn
  double beta_fast = 32, beta_slow = 1;  // yarn
  double attention_factor = 1;           // yarn: what cos and sin are multiplied by
  bool yarn_truncate = true;             // yarn: whole numbers as bounds of the ramp
  std::vector<float> freq_factors;       // [D/2] GGUF: frequencies are divided by these
  bool interleaved = false;              // GGUF's Llama files permute q and k rows
};

struct ModelConfig {
  std::string family;  // "llama": a key of the table in families.h
  int32_t num_layers = 0;
  int32_t hidden_size = 0;
  int32_t intermediate_size = 0;
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  int32_t vocab_size = 0;    // rows of the embedding = width of the logits
  int32_t max_position = 0;  // the context the model was made for
  float rms_norm_eps = 1e-5f;
  RopeConfig rope;
  bool tie_embeddings = false;
  bool attention_bias = false;  // on q, k, v (and o for the Llama family)
  bool mlp_bias = false;
  std::vector<int32_t> eos_token_ids;
  int32_t bos_token_id = -1;

  // Equal on all ranks that read the same model.
  uint64_t hash() const;
};

// Reads and checks config.json (+ generation_config.json's eos ids when given). Throws
// Error(kModel) naming the field: unknown model_type, missing or absurd numbers (THREATS: layers
// <= 1,024, hidden <= 65,536, vocab <= 2,000,000, heads divide ...), rope kinds we don't know,
// fields that would change the result and that we do not support.
ModelConfig parse_hf_config(
    std::string_view config_json, std::string_view generation_config_json, const std::string& path);

// The ranges every config is held to, wherever it was read (THREATS: no product overflows).
struct ConfigLimits {
  static constexpr int32_t kLayers = 1'024;
  static constexpr int32_t kHidden = 65'536;
  static constexpr int32_t kIntermediate = 1 << 20;
  static constexpr int32_t kHeads = 4'096;
  static constexpr int32_t kHeadDim = 1'024;
  static constexpr int32_t kVocab = 2'000'000;
  static constexpr int32_t kPositions = INT32_MAX;
};

// Holds the numbers against each other: KV heads divide heads, the head size is even. Throws
// Error(kModel); `where` names the file.
void check_config(const ModelConfig& config, const std::string& where);

// YaRN's attention magnitude for a context stretched `factor` times.
double yarn_magnitude(double factor, double mscale);

// cos/sin of every position, [max_position, D] (kernels' RopeTable), computed in double.
// Sources: transformers' modeling_rope_utils (formulas of each kind). Dynamic NTK is fixed for a
// sequence of `max_position` tokens: transformers rescales as a sequence grows, which would turn
// keys already in the cache; up to the original context both are the unscaled frequencies.
void fill_rope_table(const ModelConfig& config, int32_t max_position, float* cos_sin);

}  // namespace millrace
