// A model's shape as data, from config.json or from GGUF metadata: what the decoder, the cut and
// the memory plan need. Plain values; read once.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace millrace {

enum class RopeKind : uint8_t { kDefault, kLinear, kLlama3, kDynamicNtk, kYarn, kLongRope };

struct RopeConfig {
  RopeKind kind = RopeKind::kDefault;
  int32_t dim = 0;  // P: so many first elements of a head are rotated; even
  double theta = 10000.0;
  double factor = 1.0;
  double low_freq_factor = 1.0;          // llama3
  double high_freq_factor = 4.0;         // llama3
  int64_t original_max_position = 0;     // llama3, dynamic, yarn, longrope
  double beta_fast = 32, beta_slow = 1;  // yarn
  double attention_factor = 1;           // yarn, longrope: cos and sin are multiplied by it
  bool yarn_truncate = true;             // yarn: whole numbers as bounds of the ramp
  // [P/2] GGUF, longrope: frequencies are divided by these.
  std::vector<float> freq_factors;
  // [P/2] longrope: by these instead where no sequence is longer than original_max_position.
  std::vector<float> short_factors;
  bool interleaved = false;  // GGUF's Llama files permute q and k rows
};

enum class LayerRope : uint8_t { kMain, kLocal, kNone };

struct LayerConfig {
  int32_t window = 0;  // keys seen back from a token, itself included; 0: all
  LayerRope rope = LayerRope::kMain;
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
  RopeConfig local_rope;            // of layers with LayerRope::kLocal
  std::vector<LayerConfig> layers;  // [num_layers]
  bool tie_embeddings = false;
  bool attention_bias = false;  // on q, k, v; on o too, unless the family has it on these alone
  bool mlp_bias = false;
  bool norms_plus_one = false;  // the stored norm weights are w - 1
  float attention_scale = 0;    // of q·k; 0: 1/sqrt(head_dim)
  float attention_softcap = 0;  // of attention scores; 0: none
  float logit_softcap = 0;      // of the head's logits; 0: none
  float embedding_scale = 1;    // before rounding to the activation dtype
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

// LongRoPE's attention magnitude, by the rope's factor and original context.
double longrope_magnitude(const RopeConfig& rope);

// cos/sin of every position, [max_position, P] (kernels' RopeTable), computed in double.
// Sources: transformers' modeling_rope_utils (formulas of each kind). Dynamic NTK and the choice
// between LongRoPE's short and long factors are fixed for a sequence of `max_position` tokens, the
// longest served: transformers changes them as a sequence grows, which would turn keys already in
// the cache. Where the longest is within the original context the two are the same.
void fill_rope_table(const RopeConfig& rope, int32_t max_position, float* cos_sin);

}  // namespace millrace
