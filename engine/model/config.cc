#include "engine/model/config.h"

#include <fmt/format.h>

#include <array>
#include <bit>
#include <boost/json/value.hpp>

#include "engine/base/hash.h"
#include "engine/base/status.h"
#include "engine/model/families.h"
#include "engine/model/json_fields.h"
#include "engine/model/rope.h"

namespace millrace {

namespace {

namespace json = boost::json;

// Fields that change what a layer computes, from families and forks that reuse a known model_type.
// Each is harmless with the value given here (or absent); with another one we would be wrong.
struct NeutralField {
  std::string_view name;
  double neutral;  // a number or, for switches, 0 = false
};
constexpr std::array kNeutralFields = {
    NeutralField{"partial_rotary_factor", 1},
    NeutralField{"rotary_pct", 1},
    NeutralField{"attention_multiplier", 1},
    NeutralField{"embedding_multiplier", 1},
    NeutralField{"residual_multiplier", 1},
    NeutralField{"logits_scaling", 1},
    NeutralField{"logit_scale", 1},
    NeutralField{"attn_logit_softcapping", 0},
    NeutralField{"final_logit_softcapping", 0},
    NeutralField{"clip_qkv", 0},
    NeutralField{"num_local_experts", 0},
    NeutralField{"num_experts", 0},
    NeutralField{"use_qk_norm", 0},
    NeutralField{"qk_layernorm", 0},
    NeutralField{"alibi", 0},
    NeutralField{"is_encoder_decoder", 0},
};

void refuse_what_changes_the_result(const JsonFields& fields) {
  for (const NeutralField& field : kNeutralFields) {
    const json::value* value = fields.find(field.name);
    if (value == nullptr) continue;
    const bool neutral = value->is_bool()     ? value->as_bool() == (field.neutral != 0)
                         : value->is_number() ? value->to_number<double>() == field.neutral
                                              : false;
    if (!neutral) {
      fields.fail(
          fmt::format("'{}' is set, which this build does not compute; use a model of a "
                      "supported family ({})",
              field.name, supported_families()));
    }
  }
  if (const std::string act = fields.text("hidden_act").value_or("silu");
      act != "silu" && act != "swish") {
    fields.fail(fmt::format("'hidden_act' is '{}'; only 'silu' is supported", act));
  }
  if (fields.find("quantization_config") != nullptr) {
    fields.fail(
        "'quantization_config' is set, but quantized safetensors are not supported; use "
        "the unquantized model or a GGUF file");
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
        fmt::format("'sliding_window' is {} (null would be none), but sliding-window "
                    "attention is not supported; use a model without it",
            window));
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
      fields.fail(fmt::format("'{}' holds something that is not a token id", name));
    }
    ids.push_back(static_cast<int32_t>(id.as_int64()));
  }
  return ids;
}

void read_shape(const JsonFields& fields, const Family& family, ModelConfig& config) {
  const auto required = [&](std::string_view name, int64_t max) {
    return static_cast<int32_t>(fields.required_integer(name, 1, max));
  };
  config.num_layers = required("num_hidden_layers", ConfigLimits::kLayers);
  config.hidden_size = required("hidden_size", ConfigLimits::kHidden);
  config.intermediate_size = required("intermediate_size", ConfigLimits::kIntermediate);
  config.num_heads = required("num_attention_heads", ConfigLimits::kHeads);
  config.vocab_size = required("vocab_size", ConfigLimits::kVocab);
  config.max_position = required("max_position_embeddings", ConfigLimits::kPositions);
  const int64_t default_kv_heads =
      family.default_kv_heads > 0 ? family.default_kv_heads : config.num_heads;
  config.num_kv_heads = static_cast<int32_t>(
      fields.integer("num_key_value_heads", 1, ConfigLimits::kHeads).value_or(default_kv_heads));
  if (const auto head_dim = fields.integer("head_dim", 1, ConfigLimits::kHeadDim)) {
    config.head_dim = static_cast<int32_t>(*head_dim);
  } else if (config.hidden_size % config.num_heads == 0) {
    config.head_dim = config.hidden_size / config.num_heads;
  } else {
    fields.fail(fmt::format("'num_attention_heads' ({}) does not divide 'hidden_size' ({})",
        config.num_heads, config.hidden_size));
  }
  config.rms_norm_eps = static_cast<float>(fields.number("rms_norm_eps", 0, 1).value_or(1e-6));
  config.tie_embeddings = fields.boolean("tie_word_embeddings").value_or(false);
  config.attention_bias = fields.boolean("attention_bias").value_or(false);
  config.mlp_bias = fields.boolean("mlp_bias").value_or(false);
  if (!family.has_bias_switches && (config.attention_bias || config.mlp_bias)) {
    fields.fail(fmt::format("the family '{}' has no biases, but a bias is asked for", family.name));
  }
}

RopeKind rope_kind(const JsonFields& rope) {
  const std::string kind = rope.text("rope_type").value_or(rope.text("type").value_or("default"));
  if (kind == "default") return RopeKind::kDefault;
  if (kind == "linear") return RopeKind::kLinear;
  if (kind == "llama3") return RopeKind::kLlama3;
  if (kind == "dynamic") return RopeKind::kDynamicNtk;
  if (kind == "yarn") return RopeKind::kYarn;
  rope.fail(
      fmt::format("the rope scaling '{}' is not supported; known are default, linear, "
                  "llama3, dynamic and yarn",
          kind));
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
      scaling.fail(
          fmt::format("'{}': one rope per layer type is not "
                      "supported",
              std::string_view(key)));
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
    fields.fail(fmt::format("the model type '{}' is not supported; supported are: {}", *model_type,
        supported_families()));
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
  const auto fail = [&](const std::string& message) {
    throw Error(ExitCode::kModel, fmt::format("{}: {}", where, message));
  };
  if (config.num_heads % config.num_kv_heads != 0) {
    fail(fmt::format("{} KV heads do not divide {} heads", config.num_kv_heads, config.num_heads));
  }
  if (config.head_dim % 2 != 0 || config.head_dim < 4) {
    fail(fmt::format(
        "a head size of {} cannot be rotated: it must be even and at least 4", config.head_dim));
  }
  if (int64_t{config.num_heads} * config.head_dim > (1 << 20)) {
    fail(fmt::format("{} heads of size {} are too many", config.num_heads, config.head_dim));
  }
  if (!(config.rms_norm_eps > 0)) fail("the epsilon of the norms is not positive");
  if (config.bos_token_id >= config.vocab_size) {
    fail(fmt::format("the token id {} is not below the vocabulary's size {}", config.bos_token_id,
        config.vocab_size));
  }
  for (const int32_t id : config.eos_token_ids) {
    if (id >= config.vocab_size) {
      fail(fmt::format(
          "the token id {} is not below the vocabulary's size {}", id, config.vocab_size));
    }
  }
}

uint64_t ModelConfig::hash() const {
  uint64_t h = 0;
  const auto add = [&](uint64_t value) { h = hash_combine(h, value); };
  const auto add_number = [&](double value) { add(std::bit_cast<uint64_t>(value)); };
  for (const char c : family) add(static_cast<uint8_t>(c));
  for (const int32_t n : {num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads,
           head_dim, vocab_size, max_position, bos_token_id}) {
    add(static_cast<uint64_t>(n));
  }
  add_number(rms_norm_eps);
  add(static_cast<uint64_t>(rope.kind));
  for (const double n : {rope.theta, rope.factor, rope.low_freq_factor, rope.high_freq_factor,
           rope.beta_fast, rope.beta_slow, rope.attention_factor}) {
    add_number(n);
  }
  add(static_cast<uint64_t>(rope.original_max_position));
  for (const bool b :
      {rope.interleaved, rope.yarn_truncate, tie_embeddings, attention_bias, mlp_bias}) {
    add(b);
  }
  add(rope.freq_factors.size());
  for (const float f : rope.freq_factors) add_number(f);
  for (const int32_t id : eos_token_ids) add(static_cast<uint64_t>(id));
  return h;
}

}  // namespace millrace
