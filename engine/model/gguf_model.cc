// A GGUF file as a StoredModel: config from its metadata, tensors under Hugging Face's names.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <span>
#include <utility>

#include "engine/base/status.h"
#include "engine/model/families.h"
#include "engine/model/gguf.h"
#include "engine/model/stored_model.h"

namespace millrace {

namespace {

struct NamePair {
  std::string_view gguf, hf;
};
constexpr NamePair kModelNames[] = {
    {"token_embd", "model.embed_tokens"}, {"output_norm", "model.norm"}, {"output", "lm_head"}};
constexpr NamePair kLayerNames[] = {{"attn_q", "self_attn.q_proj"}, {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"}, {"attn_qkv", "self_attn.qkv_proj"},
    {"attn_q_norm", "self_attn.q_norm"}, {"attn_k_norm", "self_attn.k_norm"},
    {"attn_output", "self_attn.o_proj"}, {"ffn_gate", "mlp.gate_proj"}, {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"}};

// "attn_q" -> "self_attn.q_proj"; itself when we don't use it, so that it is refused.
std::string_view layer_hf_name(const Family& family, std::string_view gguf) {
  const NamePair norms[] = {{"attn_norm", family.norms.attention},
      {"post_attention_norm", family.norms.attention_post}, {"ffn_norm", family.norms.mlp},
      {"post_ffw_norm", family.norms.mlp_post}};
  if (family.fused_projections && gguf == "ffn_up") return "mlp.gate_up_proj";
  for (const std::span<const NamePair> names : {std::span<const NamePair>(norms), {kLayerNames}}) {
    const auto found = std::ranges::find(names, gguf, &NamePair::gguf);
    if (found != names.end() && !found->hf.empty()) return found->hf;
  }
  return gguf;
}

// "blk.3.attn_q.weight" -> "model.layers.3.self_attn.q_proj.weight"; empty when we don't use it.
std::string hf_name(const Family& family, std::string_view gguf) {
  const size_t dot = gguf.rfind('.');
  if (dot == std::string_view::npos) return {};
  std::string_view stem = gguf.substr(0, dot);
  const std::string_view suffix = gguf.substr(dot);  // ".weight" or ".bias"
  if (!stem.starts_with("blk.")) {
    const auto* found = std::ranges::find(kModelNames, stem, &NamePair::gguf);
    return found != std::end(kModelNames) ? fmt::format("{}{}", found->hf, suffix) : std::string();
  }
  stem.remove_prefix(4);
  const size_t end = stem.find('.');
  if (end == std::string_view::npos) return {};
  return fmt::format("model.layers.{}.{}{}", stem.substr(0, end),
      layer_hf_name(family, stem.substr(end + 1)), suffix);
}

// `keys`: the model's own numbers, "<architecture>.<key>".
void read_shape(const JsonFields& keys, ModelConfig& config) {
  config.num_layers = keys.required("block_count", ConfigLimits::kLayers);
  config.hidden_size = keys.required("embedding_length", ConfigLimits::kHidden);
  config.intermediate_size = keys.required("feed_forward_length", ConfigLimits::kIntermediate);
  config.num_heads = keys.required("attention.head_count", ConfigLimits::kHeads);
  const auto kv_heads = keys.integer("attention.head_count_kv", 1, ConfigLimits::kHeads);
  config.num_kv_heads = static_cast<int32_t>(kv_heads.value_or(config.num_heads));
  config.max_position = keys.required("context_length", ConfigLimits::kPositions);
  const auto head_dim = keys.integer("attention.key_length", 1, ConfigLimits::kHeadDim);
  config.head_dim = static_cast<int32_t>(head_dim.value_or(config.hidden_size / config.num_heads));
  keys.refuse_unless("attention.value_length", config.head_dim);
  for (const char* key :
      {"expert_count", "attention.scale", "logit_scale", "residual_scale", "embedding_scale"}) {
    keys.refuse_unless(key, 0);
  }
  config.rms_norm_eps =
      static_cast<float>(keys.number("attention.layer_norm_rms_epsilon", 1e-30, 1).value_or(1e-5));
}

// What is capped, scaled and windowed; llama.cpp's reader (llama-model.cpp) is the source of what a
// file does not say.
void read_scales_and_layers(const JsonFields& keys, const Family& family, ModelConfig& config) {
  const auto cap = [&](const char* key, float if_silent) {
    if (!family.reads(key)) keys.refuse_unless(key, 0);
    return static_cast<float>(keys.number(key, 0, 1e6).value_or(if_silent));
  };
  config.attention_softcap = cap("attn_logit_softcapping", family.default_attention_softcap);
  config.logit_softcap = cap("final_logit_softcapping", family.default_logit_softcap);
  if (family.scaled_embedding) {
    config.embedding_scale = std::sqrt(static_cast<float>(config.hidden_size));
  }
  // The 27B models alone scale by the width of a head that hidden / heads gives.
  constexpr std::pair<std::string_view, int32_t> k27B[] = {{"gemma2", 46}, {"gemma3", 62}};
  if (std::ranges::find(k27B, std::pair(family.gguf_architecture, config.num_layers)) !=
      std::end(k27B)) {
    config.attention_scale =
        1 / std::sqrt(static_cast<float>(config.hidden_size / config.num_heads));
  }
  const bool windowed = family.windows == Windows::kEvery || family.windows == Windows::kPeriodic;
  if (!windowed) keys.refuse_unless("attention.sliding_window", 0);
  const auto window = keys.integer("attention.sliding_window", 0, INT32_MAX)
                          .value_or(windowed ? family.default_window : 0);
  const auto period =
      keys.integer("attention.sliding_window_pattern", 1, INT32_MAX).value_or(family.window_period);
  set_layers(family, window < config.max_position ? static_cast<int32_t>(window) : 0,
      static_cast<int32_t>(period), config);
}

void read_rope(const JsonFields& keys, const Family& family, ModelConfig& config) {
  RopeConfig& rope = config.rope;
  rope.theta = keys.number("rope.freq_base", 1.01, 1e12).value_or(family.default_theta);
  config.local_rope.theta = keys.number("rope.freq_base_swa", 1.01, 1e12).value_or(10'000);
  rope.interleaved = config.local_rope.interleaved = family.gguf_rope_interleaved;
  rope.dim = config.local_rope.dim = config.head_dim;
  if (!family.reads("partial_rotary_factor")) {
    keys.refuse_unless("rope.dimension_count", config.head_dim);
  } else if (const auto dim = keys.integer("rope.dimension_count", 1, config.head_dim)) {
    rope.dim = static_cast<int32_t>(*dim);
  }
  const auto factor = keys.number("rope.scaling.factor", 1e-6, 1e6);
  const std::string kind = keys.text("rope.scaling.type").value_or(factor ? "linear" : "none");
  if (const auto old = keys.number("rope.scale_linear", 1e-6, 1e6); old && *old != 1) {
    rope.kind = RopeKind::kLinear;  // how files of 2023 spelled it
    rope.factor = *old;
  }
  if (kind == "none" || kind == "longrope") return;  // this one comes as tensors
  if (kind != "linear" && kind != "yarn") {
    keys.fail(
        "the rope scaling '{}' is not supported; known are linear and yarn "
        "(and rope_freqs.weight)",
        kind);
  }
  rope.factor = factor.value_or(rope.factor);
  rope.kind = kind == "linear" ? RopeKind::kLinear : RopeKind::kYarn;
  if (rope.kind == RopeKind::kLinear) return;
  for (const char* key : {"attn_factor", "yarn_attn_factor", "yarn_ext_factor"}) {
    keys.refuse_unless(fmt::format("rope.scaling.{}", key), 1);
  }
  keys.refuse_unless("rope.scaling.yarn_log_multiplier", 0);
  rope.original_max_position =
      keys.integer("rope.scaling.original_context_length", 1, ConfigLimits::kPositions)
          .value_or(config.max_position);
  rope.beta_fast = keys.number("rope.scaling.yarn_beta_fast", 1e-6, 1e6).value_or(rope.beta_fast);
  rope.beta_slow = keys.number("rope.scaling.yarn_beta_slow", 1e-6, 1e6).value_or(rope.beta_slow);
  rope.attention_factor = yarn_magnitude(rope.factor, 1);
}

// One divisor per frequency, F32 [P/2]; empty where there is no such tensor.
std::vector<float> read_factors(const GgufFile& gguf, const char* name, int32_t dim) {
  const auto found = gguf.tensors.find(name);
  if (found == gguf.tensors.end()) return {};
  const StoredTensor& tensor = found->second;
  const auto count = static_cast<size_t>(dim / 2);
  if (!tensor.readable || tensor.info.dtype != DType::kF32 ||
      tensor.info.shape != std::vector<int64_t>{dim / 2}) {
    gguf.fields().fail("'{}' is not F32 [{}]", name, count);
  }
  std::vector<float> factors(count);
  gguf.files[tensor.file].read_at(
      tensor.offset, {reinterpret_cast<uint8_t*>(factors.data()), count * 4});
  for (const float f : factors) {
    if (!std::isfinite(f) || f <= 0) gguf.fields().fail("'{}' is not positive", name);
  }
  return factors;
}

// Llama 3's scaling comes as rope_freqs.weight, LongRoPE as a pair of tensors.
void read_rope_tensors(const GgufFile& gguf, const JsonFields& keys, ModelConfig& config) {
  RopeConfig& rope = config.rope;
  rope.freq_factors = read_factors(gguf, "rope_freqs.weight", rope.dim);
  std::vector<float> longer = read_factors(gguf, "rope_factors_long.weight", rope.dim);
  rope.short_factors = read_factors(gguf, "rope_factors_short.weight", rope.dim);
  if (longer.empty() != rope.short_factors.empty()) {
    keys.fail("only one of 'rope_factors_long.weight' and 'rope_factors_short.weight' is there");
  }
  if (longer.empty() && keys.text("rope.scaling.type").value_or("") == "longrope") {
    keys.fail("the rope scaling 'longrope' needs the tensor 'rope_factors_long.weight'");
  }
  if (longer.empty()) return;
  rope.kind = RopeKind::kLongRope;
  rope.freq_factors = std::move(longer);
  rope.original_max_position =
      keys.integer("rope.scaling.original_context_length", 1, ConfigLimits::kPositions)
          .value_or(config.max_position);
  rope.factor =
      static_cast<double>(config.max_position) / static_cast<double>(rope.original_max_position);
  rope.attention_factor =
      keys.number("rope.scaling.attn_factor", 1e-6, 1e6).value_or(longrope_magnitude(rope));
}

// Where generation ends: the model's own ends, and the ends of a turn that older files only have
// as control tokens.
std::vector<int32_t> end_tokens(const JsonFields& metadata, int32_t vocab_size) {
  std::vector<int32_t> ids;
  const auto add = [&](int64_t id) {
    if (std::ranges::find(ids, id) == ids.end()) ids.push_back(static_cast<int32_t>(id));
  };
  for (const char* key : {"eos_token_id", "eot_token_id", "eom_token_id"}) {
    const auto id = metadata.integer(fmt::format("tokenizer.ggml.{}", key), 0, vocab_size - 1);
    if (id) add(*id);
  }
  const auto tokens =
      metadata.texts("tokenizer.ggml.tokens").value_or(std::vector<std::string_view>());
  const auto types = metadata.numbers("tokenizer.ggml.token_type").value_or(std::vector<double>());
  constexpr double kControl = 3;
  constexpr std::string_view kTurnEnds[] = {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>"};
  for (size_t i = 0; i < std::min(tokens.size(), types.size()); ++i) {
    const bool ends_turn = std::ranges::find(kTurnEnds, tokens[i]) != std::end(kTurnEnds);
    if (types[i] == kControl && ends_turn) add(static_cast<int64_t>(i));
  }
  return ids;
}

std::string token_text(const JsonFields& metadata, int32_t id) {
  const auto tokens =
      metadata.texts("tokenizer.ggml.tokens").value_or(std::vector<std::string_view>());
  const bool known = id >= 0 && static_cast<size_t>(id) < tokens.size();
  return known ? std::string(tokens[static_cast<size_t>(id)]) : "";
}

ModelConfig read_config(const GgufFile& gguf, const std::string& path) {
  const JsonFields metadata = gguf.fields();
  const std::string architecture = metadata.text("general.architecture").value_or("");
  const Family* family = find_family_by_gguf(architecture);
  if (family == nullptr) {
    metadata.fail("the architecture '{}' is not supported; supported are: {}", architecture,
        supported_families());
  }
  const auto embedding = gguf.tensors.find("token_embd.weight");
  if (embedding == gguf.tensors.end() || embedding->second.info.shape.size() != 2 ||
      embedding->second.info.shape[0] > ConfigLimits::kVocab) {
    metadata.fail("the tensor 'token_embd.weight' is missing or has no valid shape");
  }
  ModelConfig config;
  config.family = family->name;
  config.vocab_size = static_cast<int32_t>(embedding->second.info.shape[0]);
  const JsonFields keys = gguf.fields(architecture + ".");
  keys.refuse_unless("vocab_size", config.vocab_size);
  read_shape(keys, config);
  read_scales_and_layers(keys, *family, config);
  read_rope(keys, *family, config);
  read_rope_tensors(gguf, keys, config);
  config.tie_embeddings = !gguf.tensors.contains("output.weight");
  config.attention_bias = family->qkv_bias || gguf.tensors.contains("blk.0.attn_q.bias");
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
  const Family& family = family_of(model.config);
  const JsonFields metadata = gguf.fields();
  model.tokenizer_json = make_tokenizer_json(metadata, model.config.vocab_size);
  model.chat_template = metadata.text("tokenizer.chat_template").value_or("");
  model.bos_token = token_text(metadata, model.config.bos_token_id);
  if (!model.config.eos_token_ids.empty()) {
    model.eos_token = token_text(metadata, model.config.eos_token_ids.front());
  }
  model.files = std::move(gguf.files);
  for (auto& [name, tensor] : gguf.tensors) {
    std::string known = hf_name(family, name);
    if (!known.empty()) model.tensors.emplace(std::move(known), std::move(tensor));
  }
  return model;
}

}  // namespace millrace
