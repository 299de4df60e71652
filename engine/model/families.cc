#include "engine/model/families.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace millrace {

namespace {

// Mistral's decoder is Llama's without biases; its sliding window is refused where it would act
// (config.cc). GGUF files of Mistral models call themselves "llama".
constexpr std::array kFamilies = {
    Family{.name = "llama",
        .hf_model_type = "llama",
        .gguf_architecture = "llama",
        .gguf_rope_interleaved = true,
        .has_bias_switches = true},
    Family{.name = "mistral",
        .hf_model_type = "mistral",
        .default_kv_heads = 8,
        .default_sliding_window = 4096},
};

}  // namespace

std::span<const Family> families() { return kFamilies; }

const Family* find_family_by_hf(std::string_view model_type) {
  const auto* found = std::ranges::find(kFamilies, model_type, &Family::hf_model_type);
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

std::vector<ExpectedTensor> expected_tensors(const ModelConfig& config) {
  const int64_t hidden = config.hidden_size;
  const int64_t heads = int64_t{config.num_heads} * config.head_dim;
  const int64_t kv_heads = int64_t{config.num_kv_heads} * config.head_dim;
  const int64_t inner = config.intermediate_size;

  std::vector<ExpectedTensor> tensors;
  const auto linear = [&](const std::string& name, int64_t out, int64_t in, bool bias) {
    tensors.push_back({name + ".weight", {out, in}});
    if (bias) tensors.push_back({name + ".bias", {out}});
  };
  tensors.push_back({"model.embed_tokens.weight", {config.vocab_size, hidden}});
  for (int32_t i = 0; i < config.num_layers; ++i) {
    const std::string layer = fmt::format("model.layers.{}.", i);
    tensors.push_back({layer + "input_layernorm.weight", {hidden}});
    linear(layer + "self_attn.q_proj", heads, hidden, config.attention_bias);
    linear(layer + "self_attn.k_proj", kv_heads, hidden, config.attention_bias);
    linear(layer + "self_attn.v_proj", kv_heads, hidden, config.attention_bias);
    linear(layer + "self_attn.o_proj", hidden, heads, config.attention_bias);
    tensors.push_back({layer + "post_attention_layernorm.weight", {hidden}});
    linear(layer + "mlp.gate_proj", inner, hidden, config.mlp_bias);
    linear(layer + "mlp.up_proj", inner, hidden, config.mlp_bias);
    linear(layer + "mlp.down_proj", hidden, inner, config.mlp_bias);
  }
  tensors.push_back({"model.norm.weight", {hidden}});
  if (!config.tie_embeddings) linear("lm_head", config.vocab_size, hidden, /*bias=*/false);
  return tensors;
}

}  // namespace millrace
