#include "engine/model/config.h"

#include <fmt/format.h>

#include <boost/json/value.hpp>

#include "engine/base/bytes.h"
#include "engine/base/hash.h"
#include "engine/base/status.h"
#include "engine/model/families.h"
#include "engine/model/json_fields.h"

namespace millrace {

namespace {

namespace json = boost::json;

// Fields that change what a layer computes, from families and forks that reuse a known model_type.
// Each is harmless with the value given here (or absent); with another one we would be wrong.
constexpr std::string_view kMustBeOne[] = {"partial_rotary_factor", "rotary_pct",
    "attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling",
    "logit_scale"};
constexpr std::string_view kMustBeOff[] = {"attn_logit_softcapping", "final_logit_softcapping",
    "clip_qkv", "num_local_experts", "num_experts", "use_qk_norm", "qk_layernorm", "alibi",
    "is_encoder_decoder"};

void refuse_what_changes_the_result(const JsonFields& fields) {
  for (const std::string_view name : kMustBeOne) fields.refuse_unless(name, 1);
  for (const std::string_view name : kMustBeOff) fields.refuse_unless(name, 0);
  if (const std::string act = fields.text("hidden_act").value_or("silu");
      act != "silu" && act != "swish") {
    fields.fail("'hidden_act' is '{}'; only 'silu' is supported", act);
  }
  if (fields.find("quantization_config") != nullptr) {
    fields.fail(
        "'quantization_config' is set, but quantized safetensors are not supported; use the "
        "unquantized model or a GGUF file");
  }
  if (const json::value* types = fields.find("layer_types"); types != nullptr) {
    for (const json::value& type : types->is_array() ? types->as_array() : json::array{nullptr}) {
      if (!type.is_string() || type.as_string() != "full_attention") {
        fields.fail("'layer_types' holds more than 'full_attention', which is not supported");
      }
    }
  }
}

void check_architectures(const JsonFields& fields) {
  const json::value* list = fields.find("architectures");
  if (list == nullptr || !list->is_array() || list->as_array().empty()) return;
  for (const json::value& name : list->as_array()) {
    if (name.is_string() && std::string_view(name.as_string()).ends_with("ForCausalLM")) return;
  }
  fields.fail("'architectures' names no ...ForCausalLM: the model does not generate text");
}

// A window as wide as the context hides nothing.
void check_sliding_window(const JsonFields& fields, const Family& family, int32_t max_position) {
  if (!fields.boolean("use_sliding_window").value_or(true)) return;
  const int64_t if_silent = fields.holds("sliding_window") ? 0 : family.default_sliding_window;
  const int64_t window = fields.integer("sliding_window", 0, INT64_MAX).value_or(if_silent);
  if (window > 0 && window < max_position) {
    fields.fail(
        "'sliding_window' is {} (null would be none), but sliding-window attention is not "
        "supported; use a model without it",
        window);
  }
}

std::vector<int32_t> token_ids(const JsonFields& fields, std::string_view name) {
  const json::value* value = fields.find(name);
  if (value == nullptr) return {};
  if (!value->is_array()) {
    return {static_cast<int32_t>(*fields.integer(name, 0, ConfigLimits::kVocab))};
  }
  std::vector<int32_t> ids;
  for (const json::value& id : value->as_array()) {
    if (!id.is_int64() || id.as_int64() < 0 || id.as_int64() > ConfigLimits::kVocab) {
      fields.fail("'{}' holds something that is not a token id", name);
    }
    ids.push_back(static_cast<int32_t>(id.as_int64()));
  }
  return ids;
}

void read_shape(const JsonFields& fields, const Family& family, ModelConfig& config) {
  config.num_layers = fields.required("num_hidden_layers", ConfigLimits::kLayers);
  config.hidden_size = fields.required("hidden_size", ConfigLimits::kHidden);
  config.intermediate_size = fields.required("intermediate_size", ConfigLimits::kIntermediate);
  config.num_heads = fields.required("num_attention_heads", ConfigLimits::kHeads);
  config.vocab_size = fields.required("vocab_size", ConfigLimits::kVocab);
  config.max_position = fields.required("max_position_embeddings", ConfigLimits::kPositions);
  const int64_t default_kv_heads =
      family.default_kv_heads > 0 ? family.default_kv_heads : config.num_heads;
  config.num_kv_heads = static_cast<int32_t>(
      fields.integer("num_key_value_heads", 1, ConfigLimits::kHeads).value_or(default_kv_heads));
  if (const auto head_dim = fields.integer("head_dim", 1, ConfigLimits::kHeadDim)) {
    config.head_dim = static_cast<int32_t>(*head_dim);
  } else if (config.hidden_size % config.num_heads == 0) {
    config.head_dim = config.hidden_size / config.num_heads;
  } else {
    fields.fail("'num_attention_heads' ({}) does not divide 'hidden_size' ({})", config.num_heads,
        config.hidden_size);
  }
  config.rms_norm_eps = static_cast<float>(fields.number("rms_norm_eps", 0, 1).value_or(1e-6));
  config.tie_embeddings = fields.boolean("tie_word_embeddings").value_or(false);
  config.attention_bias = fields.boolean("attention_bias").value_or(false);
  config.mlp_bias = fields.boolean("mlp_bias").value_or(false);
  if (!family.has_bias_switches && (config.attention_bias || config.mlp_bias)) {
    fields.fail("the family '{}' has no biases, but a bias is asked for", family.name);
  }
}

RopeKind rope_kind(const JsonFields& rope) {
  const std::string kind = rope.text("rope_type").value_or(rope.text("type").value_or("default"));
  constexpr std::pair<std::string_view, RopeKind> kKinds[] = {{"default", RopeKind::kDefault},
      {"linear", RopeKind::kLinear}, {"llama3", RopeKind::kLlama3},
      {"dynamic", RopeKind::kDynamicNtk}, {"yarn", RopeKind::kYarn}};
  for (const auto& [name, value] : kKinds) {
    if (kind == name) return value;
  }
  rope.fail(
      "the rope scaling '{}' is not supported; known are default, linear, llama3, dynamic and yarn",
      kind);
}

double yarn_attention_factor(const JsonFields& rope, double factor) {
  if (const auto given = rope.number("attention_factor", 1e-6, 1e6)) return *given;
  const double mscale = rope.number("mscale", 0, 1e6).value_or(0);
  const double mscale_all_dim = rope.number("mscale_all_dim", 0, 1e6).value_or(0);
  if (mscale > 0 && mscale_all_dim > 0) {
    return yarn_magnitude(factor, mscale) / yarn_magnitude(factor, mscale_all_dim);
  }
  return yarn_magnitude(factor, 1);
}

// `rope_scaling` (transformers 4, "type" or "rope_type") or `rope_parameters` (transformers 5).
RopeConfig read_rope(const JsonFields& fields, int64_t max_position) {
  constexpr double kMax = 1e12;
  RopeConfig rope;
  rope.theta = fields.number("rope_theta", 1.01, kMax).value_or(rope.theta);
  const json::value* given = fields.find("rope_scaling");
  if (given == nullptr || (given->is_object() && given->as_object().empty())) {
    given = fields.find("rope_parameters");
  }
  if (given == nullptr) return rope;
  if (!given->is_object()) fields.fail("the rope scaling is not a JSON object");
  const JsonFields scaling(given->as_object(), fields.where() + " (rope scaling)");
  for (const auto& [key, value] : given->as_object()) {
    if (value.is_object())
      scaling.fail("'{}': one rope per layer type is not supported", std::string_view(key));
  }
  rope.kind = rope_kind(scaling);
  rope.theta = scaling.number("rope_theta", 1.01, kMax).value_or(rope.theta);
  if (scaling.number("partial_rotary_factor", 0, 1).value_or(1) != 1) {
    scaling.fail("'partial_rotary_factor' other than 1 is not supported");
  }
  if (rope.kind == RopeKind::kDefault) return rope;

  // Dynamic scaling takes the context itself as the original one.
  rope.original_max_position = max_position;
  if (rope.kind != RopeKind::kDynamicNtk) {
    constexpr std::string_view kName = "original_max_position_embeddings";
    const auto inner = scaling.integer(kName, 1, ConfigLimits::kPositions);
    rope.original_max_position =
        fields.integer(kName, 1, ConfigLimits::kPositions).value_or(inner.value_or(max_position));
  }
  const auto factor = scaling.number("factor", 1e-6, 1e6);
  if (!factor && rope.kind != RopeKind::kYarn) scaling.fail("'factor' is missing");
  rope.factor = factor.value_or(static_cast<double>(max_position) / rope.original_max_position);
  if (rope.kind == RopeKind::kLlama3) {
    const auto low = scaling.number("low_freq_factor", 1e-6, 1e6);
    const auto high = scaling.number("high_freq_factor", 1e-6, 1e6);
    if (!low || !high || *high <= *low) {
      scaling.fail("'low_freq_factor' and a larger 'high_freq_factor' are needed");
    }
    rope.low_freq_factor = *low;
    rope.high_freq_factor = *high;
  } else if (rope.kind == RopeKind::kYarn) {
    rope.beta_fast = scaling.number("beta_fast", 1e-6, 1e6).value_or(rope.beta_fast);
    rope.beta_slow = scaling.number("beta_slow", 1e-6, 1e6).value_or(rope.beta_slow);
    rope.attention_factor = yarn_attention_factor(scaling, rope.factor);
    rope.yarn_truncate = scaling.boolean("truncate").value_or(true);
  }
  return rope;
}

}  // namespace

ModelConfig parse_hf_config(std::string_view config_json, std::string_view generation_config_json,
    const std::string& path) {
  const std::string where = fmt::format("config.json of '{}'", path);
  const json::object object = parse_json_object(config_json, where);
  const JsonFields fields(object, where);
  const auto model_type = fields.text("model_type");
  if (!model_type) fields.fail("'model_type' is missing: this is not the config of a model");
  const Family* family = find_family_by_hf(*model_type);
  if (family == nullptr) {
    fields.fail("the model type '{}' is not supported; supported are: {}", *model_type,
        supported_families());
  }
  check_architectures(fields);
  refuse_what_changes_the_result(fields);

  ModelConfig config;
  config.family = family->name;
  read_shape(fields, *family, config);
  check_sliding_window(fields, *family, config.max_position);
  config.rope = read_rope(fields, config.max_position);
  config.bos_token_id =
      static_cast<int32_t>(fields.integer("bos_token_id", -1, ConfigLimits::kVocab).value_or(-1));
  config.eos_token_ids = token_ids(fields, "eos_token_id");
  if (!generation_config_json.empty()) {
    const std::string generation_where = fmt::format("generation_config.json of '{}'", path);
    const json::object generation = parse_json_object(generation_config_json, generation_where);
    // As transformers generates: this file's ends replace the config's.
    auto ids = token_ids(JsonFields(generation, generation_where), "eos_token_id");
    if (!ids.empty()) config.eos_token_ids = std::move(ids);
  }
  check_config(config, where);
  return config;
}

void check_config(const ModelConfig& config, const std::string& where) {
  const auto fail = [&]<typename... Args>(fmt::format_string<Args...> format, Args&&... args) {
    throw Error(
        ExitCode::kModel, "{}: {}", where, fmt::format(format, std::forward<Args>(args)...));
  };
  if (config.num_heads % config.num_kv_heads != 0) {
    fail("{} KV heads do not divide {} heads", config.num_kv_heads, config.num_heads);
  }
  if (config.head_dim % 2 != 0 || config.head_dim < 4) {
    fail("a head size of {} cannot be rotated: it must be even and at least 4", config.head_dim);
  }
  if (int64_t{config.num_heads} * config.head_dim > (1 << 20)) {
    fail("{} heads of size {} are too many", config.num_heads, config.head_dim);
  }
  if (!(config.rms_norm_eps > 0)) fail("the epsilon of the norms is not positive");
  std::vector<int32_t> ids = config.eos_token_ids;
  ids.push_back(config.bos_token_id);
  for (const int32_t id : ids) {
    if (id < config.vocab_size) continue;
    fail("the token id {} is not below the vocabulary's size {}", id, config.vocab_size);
  }
}

uint64_t ModelConfig::hash() const {
  ByteWriter out;
  out(family, num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim,
      vocab_size, max_position, rms_norm_eps, tie_embeddings, attention_bias, mlp_bias,
      eos_token_ids, bos_token_id);
  out(rope.kind, rope.theta, rope.factor, rope.low_freq_factor, rope.high_freq_factor,
      rope.original_max_position, rope.beta_fast, rope.beta_slow, rope.attention_factor,
      rope.yarn_truncate, rope.freq_factors, rope.interleaved);
  uint64_t hash = 0;
  for (const uint8_t byte : out.take()) hash = hash_combine(hash, byte);
  return hash;
}

}  // namespace millrace
