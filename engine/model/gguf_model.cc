// A GGUF file as a StoredModel: config from its metadata, tensors under Hugging Face's names.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "engine/base/status.h"
#include "engine/model/families.h"
#include "engine/model/gguf.h"
#include "engine/model/gguf_tokenizer.h"
#include "engine/model/rope.h"
#include "engine/model/stored_model.h"

namespace millrace {

namespace {

struct NamePair {
  std::string_view gguf, hf;
};
constexpr std::array kModelNames = {
    NamePair{"token_embd", "model.embed_tokens"},
    NamePair{"output_norm", "model.norm"},
    NamePair{"output", "lm_head"},
};
constexpr std::array kLayerNames = {
    NamePair{"attn_norm", "input_layernorm"},
    NamePair{"attn_q", "self_attn.q_proj"},
    NamePair{"attn_k", "self_attn.k_proj"},
    NamePair{"attn_v", "self_attn.v_proj"},
    NamePair{"attn_output", "self_attn.o_proj"},
    NamePair{"ffn_norm", "post_attention_layernorm"},
    NamePair{"ffn_gate", "mlp.gate_proj"},
    NamePair{"ffn_up", "mlp.up_proj"},
    NamePair{"ffn_down", "mlp.down_proj"},
};

// "blk.3.attn_q.weight" -> "model.layers.3.self_attn.q_proj.weight"; empty when we don't use it.
std::string hf_name(std::string_view gguf) {
  const size_t dot = gguf.rfind('.');
  if (dot == std::string_view::npos) return {};
  std::string_view stem = gguf.substr(0, dot);
  const std::string_view suffix = gguf.substr(dot);  // ".weight" or ".bias"
  if (!stem.starts_with("blk.")) {
    const auto* found = std::ranges::find(kModelNames, stem, &NamePair::gguf);
    return found != kModelNames.end() ? fmt::format("{}{}", found->hf, suffix) : std::string();
  }
  stem.remove_prefix(4);
  const size_t end = stem.find('.');
  if (end == std::string_view::npos) return {};
  const auto* found = std::ranges::find(kLayerNames, stem.substr(end + 1), &NamePair::gguf);
  if (found == kLayerNames.end()) return {};
  return fmt::format("model.layers.{}.{}{}", stem.substr(0, end), found->hf, suffix);
}

// Access to "<architecture>.<key>", the way the format names a model's own numbers.
class ArchitectureKeys {
 public:
  ArchitectureKeys(const GgufMetadata& metadata, std::string architecture)
      : metadata_(metadata), prefix_(std::move(architecture) + ".") {}

  std::optional<int32_t> integer(const std::string& key, int64_t max) const {
    const auto value = metadata_.integer(prefix_ + key, 1, max);
    return value ? std::optional(static_cast<int32_t>(*value)) : std::nullopt;
  }
  int32_t required(const std::string& key, int64_t max) const {
    const auto value = integer(key, max);
    if (!value) metadata_.fail(fmt::format("the metadata key '{}{}' is missing", prefix_, key));
    return *value;
  }
  std::optional<double> number(const std::string& key, double min, double max) const {
    return metadata_.number(prefix_ + key, min, max);
  }
  std::optional<std::string> text(const std::string& key) const {
    return metadata_.text(prefix_ + key);
  }
  // Keys that change the result unless they hold `neutral`.
  void refuse_unless(const std::string& key, double neutral) const {
    if (metadata_.find(prefix_ + key) == nullptr) return;
    if (metadata_.number(prefix_ + key, -1e30, 1e30) != neutral) {
      metadata_.fail(
          fmt::format("the metadata key '{}{}' is set, which this build does not "
                      "compute; use a model of a supported family ({})",
              prefix_, key, supported_families()));
    }
  }

 private:
  const GgufMetadata& metadata_;
  std::string prefix_;
};

void read_shape(const ArchitectureKeys& keys, ModelConfig& config) {
  config.num_layers = keys.required("block_count", ConfigLimits::kLayers);
  config.hidden_size = keys.required("embedding_length", ConfigLimits::kHidden);
  config.intermediate_size = keys.required("feed_forward_length", ConfigLimits::kIntermediate);
  config.num_heads = keys.required("attention.head_count", ConfigLimits::kHeads);
  config.num_kv_heads =
      keys.integer("attention.head_count_kv", ConfigLimits::kHeads).value_or(config.num_heads);
  config.max_position = keys.required("context_length", ConfigLimits::kPositions);
  config.head_dim = keys.integer("attention.key_length", ConfigLimits::kHeadDim)
                        .value_or(config.hidden_size / config.num_heads);
  keys.refuse_unless("attention.value_length", config.head_dim);
  keys.refuse_unless("rope.dimension_count", config.head_dim);
  keys.refuse_unless("expert_count", 0);
  keys.refuse_unless("attention.scale", 0);
  keys.refuse_unless("logit_scale", 0);
  keys.refuse_unless("residual_scale", 0);
  keys.refuse_unless("embedding_scale", 0);
  keys.refuse_unless("attention.sliding_window", 0);
  config.rms_norm_eps =
      static_cast<float>(keys.number("attention.layer_norm_rms_epsilon", 1e-30, 1).value_or(1e-5));
}

void read_rope(const ArchitectureKeys& keys, const GgufMetadata& metadata, ModelConfig& config) {
  RopeConfig& rope = config.rope;
  rope.theta = keys.number("rope.freq_base", 1.01, 1e12).value_or(rope.theta);
  const auto factor = keys.number("rope.scaling.factor", 1e-6, 1e6);
  const std::string kind = keys.text("rope.scaling.type").value_or(factor ? "linear" : "none");
  if (const auto old = keys.number("rope.scale_linear", 1e-6, 1e6); old && *old != 1) {
    rope.kind = RopeKind::kLinear;  // how files of 2023 spelled it
    rope.factor = *old;
  }
  if (kind == "none") return;
  if (kind != "linear" && kind != "yarn") {
    metadata.fail(
        fmt::format("the rope scaling '{}' is not supported; known are linear and yarn "
                    "(and rope_freqs.weight)",
            kind));
  }
  rope.factor = factor.value_or(rope.factor);
  rope.kind = kind == "linear" ? RopeKind::kLinear : RopeKind::kYarn;
  if (rope.kind == RopeKind::kLinear) return;
  keys.refuse_unless("rope.scaling.attn_factor", 1);
  keys.refuse_unless("rope.scaling.yarn_attn_factor", 1);
  keys.refuse_unless("rope.scaling.yarn_ext_factor", 1);
  keys.refuse_unless("rope.scaling.yarn_log_multiplier", 0);
  rope.original_max_position =
      keys.integer("rope.scaling.original_context_length", ConfigLimits::kPositions)
          .value_or(config.max_position);
  rope.beta_fast = keys.number("rope.scaling.yarn_beta_fast", 1e-6, 1e6).value_or(rope.beta_fast);
  rope.beta_slow = keys.number("rope.scaling.yarn_beta_slow", 1e-6, 1e6).value_or(rope.beta_slow);
  rope.attention_factor = yarn_magnitude(rope.factor, 1);
}

// Llama 3's scaling comes as one divisor per frequency: rope_freqs.weight, F32 [D/2].
void read_freq_factors(const GgufFile& gguf, ModelConfig& config) {
  const auto found = gguf.tensors.find("rope_freqs.weight");
  if (found == gguf.tensors.end()) return;
  const StoredTensor& tensor = found->second;
  const auto count = static_cast<size_t>(config.head_dim / 2);
  if (!tensor.readable || tensor.info.dtype != DType::kF32 ||
      tensor.info.shape != std::vector<int64_t>{config.head_dim / 2}) {
    gguf.metadata.fail(fmt::format("'rope_freqs.weight' is not F32 [{}]", count));
  }
  std::vector<float>& factors = config.rope.freq_factors;
  factors.resize(count);
  gguf.file.read_at(tensor.offset, {reinterpret_cast<uint8_t*>(factors.data()), count * 4});
  for (const float f : factors) {
    if (!std::isfinite(f) || f <= 0) gguf.metadata.fail("'rope_freqs.weight' is not positive");
  }
}

// Where generation ends: the model's own ends, and the ends of a turn that older files only have
// as control tokens.
std::vector<int32_t> end_tokens(const GgufMetadata& metadata, int32_t vocab_size) {
  std::vector<int32_t> ids;
  const auto add = [&](int64_t id) {
    if (std::ranges::find(ids, id) == ids.end()) ids.push_back(static_cast<int32_t>(id));
  };
  for (const char* key : {"eos_token_id", "eot_token_id", "eom_token_id"}) {
    const auto id = metadata.integer(fmt::format("tokenizer.ggml.{}", key), 0, vocab_size - 1);
    if (id) add(*id);
  }
  const GgufStrings* tokens = metadata.strings("tokenizer.ggml.tokens");
  const GgufNumbers* types = metadata.numbers("tokenizer.ggml.token_type");
  if (tokens == nullptr || types == nullptr) return ids;
  constexpr double kControl = 3;
  for (size_t i = 0; i < std::min(tokens->size(), types->size()); ++i) {
    const std::string& token = (*tokens)[i];
    if ((*types)[i] == kControl && (token == "<|eot_id|>" || token == "<|im_end|>")) {
      add(static_cast<int64_t>(i));
    }
  }
  return ids;
}

std::string token_text(const GgufMetadata& metadata, int32_t id) {
  const GgufStrings* tokens = metadata.strings("tokenizer.ggml.tokens");
  const bool known = tokens != nullptr && id >= 0 && static_cast<size_t>(id) < tokens->size();
  return known ? (*tokens)[static_cast<size_t>(id)] : std::string();
}

ModelConfig read_config(const GgufFile& gguf, const std::string& path) {
  const GgufMetadata& metadata = gguf.metadata;
  const std::string architecture = metadata.text("general.architecture").value_or("");
  const Family* family = find_family_by_gguf(architecture);
  if (family == nullptr) {
    metadata.fail(fmt::format("the architecture '{}' is not supported; supported are: {}",
        architecture, supported_families()));
  }
  if (metadata.integer("split.count", 0, 65'535).value_or(0) > 1) {
    metadata.fail("it is one part of a split model; join the parts with llama-gguf-split --merge");
  }
  const auto embedding = gguf.tensors.find("token_embd.weight");
  if (embedding == gguf.tensors.end() || embedding->second.info.shape.size() != 2 ||
      embedding->second.info.shape[0] > ConfigLimits::kVocab) {
    metadata.fail("the tensor 'token_embd.weight' is missing or has no valid shape");
  }
  ModelConfig config;
  config.family = family->name;
  config.vocab_size = static_cast<int32_t>(embedding->second.info.shape[0]);
  const ArchitectureKeys keys(metadata, architecture);
  keys.refuse_unless("vocab_size", config.vocab_size);
  read_shape(keys, config);
  read_rope(keys, metadata, config);
  config.rope.interleaved = family->gguf_rope_interleaved;
  read_freq_factors(gguf, config);
  config.tie_embeddings = !gguf.tensors.contains("output.weight");
  config.attention_bias = gguf.tensors.contains("blk.0.attn_q.bias");
  config.mlp_bias = gguf.tensors.contains("blk.0.ffn_gate.bias");
  config.bos_token_id = static_cast<int32_t>(
      metadata.integer("tokenizer.ggml.bos_token_id", 0, config.vocab_size - 1).value_or(-1));
  config.eos_token_ids = end_tokens(metadata, config.vocab_size);
  check_config(config, fmt::format("'{}'", path));
  return config;
}

}  // namespace

StoredModel read_gguf_model(const std::string& path) {
  GgufFile gguf = read_gguf(path);
  StoredModel model;
  model.config = read_config(gguf, path);
  model.tokenizer_json = make_tokenizer_json(gguf.metadata, model.config.vocab_size);
  model.chat_template = gguf.metadata.text("tokenizer.chat_template").value_or("");
  model.bos_token = token_text(gguf.metadata, model.config.bos_token_id);
  if (!model.config.eos_token_ids.empty()) {
    model.eos_token = token_text(gguf.metadata, model.config.eos_token_ids.front());
  }
  model.files.push_back(std::move(gguf.file));
  for (auto& [name, tensor] : gguf.tensors) {
    std::string known = hf_name(name);
    if (!known.empty()) model.tensors.emplace(std::move(known), std::move(tensor));
  }
  return model;
}

}  // namespace millrace
