#include "engine/model/families.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "engine/base/check.h"

namespace millrace {

namespace {

constexpr NormNames kNormsAround = {.attention = "input_layernorm",
    .attention_post = "post_attention_layernorm",
    .mlp = "pre_feedforward_layernorm",
    .mlp_post = "post_feedforward_layernorm"};
constexpr NormNames kNormsAfter = {
    .attention_post = "post_attention_layernorm", .mlp_post = "post_feedforward_layernorm"};

constexpr std::string_view kPhi3Fields[] = {"partial_rotary_factor"};
constexpr std::string_view kGemma2Fields[] = {"attn_logit_softcapping", "final_logit_softcapping",
    "query_pre_attn_scalar", "sliding_window_pattern"};
constexpr std::string_view kGemma3Fields[] = {"final_logit_softcapping", "query_pre_attn_scalar",
    "sliding_window_pattern", "rope_local_base_freq"};
constexpr std::string_view kSmolLm3Fields[] = {"no_rope_layers", "no_rope_layer_interval"};

// Sources: transformers' configuration_*.py and modeling_*.py, llama.cpp's convert_hf_to_gguf.py.
constexpr std::array kFamilies = {
    Family{.name = "llama",
        .gguf_architecture = "llama",
        .gguf_rope_interleaved = true,
        .attention_bias_switch = true,
        .mlp_bias_switch = true},
    // GGUF files of Mistral models call themselves "llama".
    Family{.name = "mistral",
        .windows = Windows::kEvery,
        .default_kv_heads = 8,
        .default_window = 4096},
    Family{.name = "qwen2",
        .gguf_architecture = "qwen2",
        .qkv_bias = true,
        .windows = Windows::kSwitched,
        .default_kv_heads = 32,
        .default_window = 4096},
    Family{.name = "qwen3",
        .gguf_architecture = "qwen3",
        .qk_norm = QkNorm::kPerHead,
        .attention_bias_switch = true,
        .windows = Windows::kSwitched,
        .default_kv_heads = 32,
        .default_head_dim = 128,
        .default_window = 4096},
    // Phi-3, Phi-3.5, Phi-4 and Phi-4-mini.
    Family{.name = "phi3",
        .gguf_architecture = "phi3",
        .fused_projections = true,
        .windows = Windows::kEvery,
        .fields = kPhi3Fields,
        .default_eps = 1e-5},
    Family{.name = "gemma2",
        .gguf_architecture = "gemma2",
        .activation = Activation::kGeluTanh,
        .norms = kNormsAround,
        .norms_plus_one = true,
        .scaled_embedding = true,
        .attention_bias_switch = true,
        .windows = Windows::kPeriodic,
        .window_period = 2,
        .fields = kGemma2Fields,
        .default_kv_heads = 4,
        .default_head_dim = 256,
        .default_window = 4096,
        .default_tie = true,
        .default_attention_softcap = 50,
        .default_logit_softcap = 30},
    Family{.name = "gemma3_text",
        .gguf_architecture = "gemma3",
        .activation = Activation::kGeluTanh,
        .norms = kNormsAround,
        .qk_norm = QkNorm::kPerHead,
        .norms_plus_one = true,
        .scaled_embedding = true,
        .attention_bias_switch = true,
        .windows = Windows::kPeriodic,
        .window_period = 6,
        .fields = kGemma3Fields,
        .default_kv_heads = 4,
        .default_head_dim = 256,
        .default_window = 4096,
        .default_tie = true,
        .default_theta = 1e6},
    Family{.name = "smollm3",
        .gguf_architecture = "smollm3",
        .gguf_rope_interleaved = true,
        .attention_bias_switch = true,
        .mlp_bias_switch = true,
        .windows = Windows::kSwitched,
        .no_rope_period = 4,
        .fields = kSmolLm3Fields,
        .default_kv_heads = 4,
        .default_tie = true,
        .default_theta = 2e6},
    Family{.name = "olmo2",
        .gguf_architecture = "olmo2",
        .norms = kNormsAfter,
        .qk_norm = QkNorm::kWhole,
        .attention_bias_switch = true,
        .default_eps = 1e-5},
};

}  // namespace

bool Family::reads(std::string_view field) const {
  return std::ranges::find(fields, field) != fields.end();
}

std::span<const Family> families() { return kFamilies; }

const Family* find_family(std::string_view name) {
  const auto* found = std::ranges::find(kFamilies, name, &Family::name);
  return found != kFamilies.end() ? found : nullptr;
}

const Family* find_family_by_gguf(std::string_view architecture) {
  const auto* found = std::ranges::find_if(kFamilies, [&](const Family& family) {
    return !family.gguf_architecture.empty() && family.gguf_architecture == architecture;
  });
  return found != kFamilies.end() ? found : nullptr;
}

std::string supported_families() {
  std::string names;
  for (const Family& family : kFamilies) {
    names += (names.empty() ? "" : ", ") + std::string(family.name);
  }
  return names;
}

const Family& family_of(const ModelConfig& config) {
  const Family* family = find_family(config.family);
  CHECK(family != nullptr, "a config of the family '{}'", config.family);
  return *family;
}

void set_layers(const Family& family, int32_t window, int32_t period, ModelConfig& config) {
  config.layers.assign(static_cast<size_t>(config.num_layers), LayerConfig());
  const bool local_rope = family.reads("rope_local_base_freq");
  for (int32_t i = 0; i < config.num_layers; ++i) {
    LayerConfig& layer = config.layers[static_cast<size_t>(i)];
    if (family.no_rope_period > 0 && (i + 1) % family.no_rope_period == 0) {
      layer.rope = LayerRope::kNone;
    }
    const bool full = family.windows == Windows::kNone ||
                      (family.windows == Windows::kPeriodic && (i + 1) % period == 0);
    if (full) continue;
    layer.window = window;
    if (local_rope) layer.rope = LayerRope::kLocal;
  }
}

std::vector<ExpectedTensor> expected_tensors(const ModelConfig& config) {
  const Family& family = family_of(config);
  const int64_t hidden = config.hidden_size;
  const int64_t heads = int64_t{config.num_heads} * config.head_dim;
  const int64_t kv_heads = int64_t{config.num_kv_heads} * config.head_dim;
  const int64_t inner = config.intermediate_size;
  const bool whole = family.qk_norm == QkNorm::kWhole;

  std::vector<ExpectedTensor> tensors;
  const auto linear = [&](const std::string& name, int64_t out, int64_t in, bool bias) {
    tensors.push_back({name + ".weight", {out, in}});
    if (bias) tensors.push_back({name + ".bias", {out}});
  };
  tensors.push_back({"model.embed_tokens.weight", {config.vocab_size, hidden}});
  for (int32_t i = 0; i < config.num_layers; ++i) {
    const std::string layer = fmt::format("model.layers.{}.", i);
    const std::string attention = layer + "self_attn.", mlp = layer + "mlp.";
    for (const std::string_view norm : {family.norms.attention, family.norms.attention_post,
             family.norms.mlp, family.norms.mlp_post}) {
      if (!norm.empty()) tensors.push_back({fmt::format("{}{}.weight", layer, norm), {hidden}});
    }
    if (family.fused_projections) {
      linear(attention + "qkv_proj", heads + 2 * kv_heads, hidden, config.attention_bias);
      linear(mlp + "gate_up_proj", 2 * inner, hidden, config.mlp_bias);
    } else {
      linear(attention + "q_proj", heads, hidden, config.attention_bias);
      linear(attention + "k_proj", kv_heads, hidden, config.attention_bias);
      linear(attention + "v_proj", kv_heads, hidden, config.attention_bias);
      linear(mlp + "gate_proj", inner, hidden, config.mlp_bias);
      linear(mlp + "up_proj", inner, hidden, config.mlp_bias);
    }
    if (family.qk_norm != QkNorm::kNone) {
      tensors.push_back({attention + "q_norm.weight", {whole ? heads : config.head_dim}});
      tensors.push_back({attention + "k_norm.weight", {whole ? kv_heads : config.head_dim}});
    }
    linear(attention + "o_proj", hidden, heads, config.attention_bias && !family.qkv_bias);
    linear(mlp + "down_proj", hidden, inner, config.mlp_bias);
  }
  tensors.push_back({"model.norm.weight", {hidden}});
  if (!config.tie_embeddings) linear("lm_head", config.vocab_size, hidden, /*bias=*/false);
  return tensors;
}

}  // namespace millrace
