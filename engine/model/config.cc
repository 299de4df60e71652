#include "engine/model/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/value.hpp>
#include <cmath>

#include "engine/base/bytes.h"
#include "engine/base/hash.h"
#include "engine/base/status.h"
#include "engine/model/families.h"
#include "engine/model/json_fields.h"

namespace millrace {

namespace {

namespace json = boost::json;

// Fields that change what a layer computes, from families and forks that reuse a known model_type.
// Each is harmless with the value given here (or absent); with another one we would be wrong,
// unless the family reads it.
struct Neutral {
  std::string_view name;
  double value;
};
constexpr Neutral kChangesTheResult[] = {{"partial_rotary_factor", 1}, {"rotary_pct", 1},
    {"attention_multiplier", 1}, {"embedding_multiplier", 1}, {"residual_multiplier", 1},
    {"logits_scaling", 1}, {"logit_scale", 1}, {"attn_logit_softcapping", 0},
    {"final_logit_softcapping", 0}, {"query_pre_attn_scalar", 0}, {"rope_local_base_freq", 0},
    {"sliding_window_pattern", 0}, {"no_rope_layers", 0}, {"no_rope_layer_interval", 0},
    {"use_bidirectional_attention", 0}, {"use_mrope", 0}, {"attn_temperature_tuning", 0},
    {"attention_chunk_size", 0}, {"clip_qkv", 0}, {"num_local_experts", 0}, {"num_experts", 0},
    {"use_qk_norm", 0}, {"qk_layernorm", 0}, {"alibi", 0}, {"is_encoder_decoder", 0}};

void refuse_what_changes_the_result(const JsonFields& fields, const Family& family) {
  for (const auto& [name, value] : kChangesTheResult) {
    if (!family.reads(name)) fields.refuse_unless(name, value);
  }
  constexpr std::string_view kSilu[] = {"silu", "swish"}, kGelu[] = {"gelu_pytorch_tanh"};
  const std::span<const std::string_view> known =
      family.activation == Activation::kSilu ? std::span<const std::string_view>(kSilu) : kGelu;
  for (const char* name : {"hidden_act", "hidden_activation"}) {
    const std::string act = fields.text(name).value_or(std::string(known[0]));
    if (std::ranges::find(known, act) != known.end()) continue;
    fields.fail("'{}' is '{}'; only '{}' is supported for the family '{}'", name, act, known[0],
        family.name);
  }
  if (fields.find("quantization_config") != nullptr) {
    fields.fail(
        "'quantization_config' is set, but quantized safetensors are not supported; use the "
        "unquantized model or a GGUF file");
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

// The window of windowed layers; 0: none is in use. One as wide as the context hides nothing.
int32_t read_window(const JsonFields& fields, const Family& family, int32_t max_position) {
  if (family.windows == Windows::kSwitched || family.windows == Windows::kNone) {
    const bool if_silent = family.windows == Windows::kNone;
    if (!fields.boolean("use_sliding_window").value_or(if_silent)) return 0;
  }
  const int64_t if_silent = fields.holds("sliding_window") ? 0 : family.default_window;
  const int64_t window = fields.integer("sliding_window", 0, INT64_MAX).value_or(if_silent);
  if (window == 0 || window >= max_position) return 0;
  if (family.windows == Windows::kNone) {
    fields.fail("'sliding_window' is {}, but the family '{}' has no sliding-window attention",
        window, family.name);
  }
  return static_cast<int32_t>(window);
}

// config.json's own word on each layer, where it has one: 'no_rope_layers' (1: rotated) and
// 'layer_types'.
void read_layers(const JsonFields& fields, const Family& family, ModelConfig& config) {
  const int32_t window = read_window(fields, family, config.max_position);
  const auto whole = [&](const char* name, int32_t if_silent) {
    return static_cast<int32_t>(fields.integer(name, 1, INT32_MAX).value_or(if_silent));
  };
  set_layers(family, window, whole("sliding_window_pattern", family.window_period), config);
  const auto count = static_cast<size_t>(config.num_layers);
  const auto types = fields.texts("layer_types");
  if (types && types->size() != count) {
    fields.fail("'layer_types' has {} entries for {} layers", types->size(), count);
  }
  const int32_t no_rope = whole("no_rope_layer_interval", family.no_rope_period);
  const auto rotated = family.no_rope_period > 0 ? fields.numbers("no_rope_layers") : std::nullopt;
  if (rotated && rotated->size() != count) {
    fields.fail("'no_rope_layers' has {} entries for {} layers", rotated->size(), count);
  }
  const auto first_window = fields.integer("max_window_layers", 0, INT32_MAX).value_or(28);
  for (size_t i = 0; i < count; ++i) {
    LayerConfig& layer = config.layers[i];
    const auto number = static_cast<int32_t>(i);
    if (family.no_rope_period > 0) {
      const bool rope = rotated ? (*rotated)[i] != 0 : (number + 1) % no_rope != 0;
      layer.rope = rope ? LayerRope::kMain : LayerRope::kNone;
    }
    if (family.windows == Windows::kSwitched) {
      const bool full =
          family.no_rope_period > 0 ? layer.rope == LayerRope::kMain : number < first_window;
      if (full) layer.window = 0;
    }
    if (!types) continue;
    const bool sliding = (*types)[i] == "sliding_attention";
    if (!sliding && (*types)[i] != "full_attention") {
      fields.fail(
          "'layer_types' holds '{}'; known are full_attention and sliding_attention", (*types)[i]);
    }
    const bool wide =
        fields.integer("sliding_window", 0, INT64_MAX).value_or(0) >= config.max_position;
    const bool decided = family.windows == Windows::kSwitched ||
                         family.windows == Windows::kPeriodic;  // by the types
    if (decided ? sliding && window == 0 && !wide : sliding != (layer.window > 0) && !wide) {
      fields.fail(
          "'layer_types' says {} of layer {}, which does not go with the sliding window of this "
          "config and family ('{}')",
          (*types)[i], i, family.name);
    }
    if (!decided) continue;
    layer.window = sliding ? window : 0;
    if (family.reads("rope_local_base_freq")) {
      layer.rope = sliding ? LayerRope::kLocal : LayerRope::kMain;
    }
  }
}

// What is capped and scaled, in families that do.
void read_scales(const JsonFields& fields, const Family& family, ModelConfig& config) {
  const auto cap = [&](const char* name, float if_silent) {
    if (!family.reads(name) || !fields.holds(name)) return if_silent;
    return static_cast<float>(fields.number(name, 1e-3, 1e6).value_or(0));  // null: none
  };
  config.attention_softcap = cap("attn_logit_softcapping", family.default_attention_softcap);
  config.logit_softcap = cap("final_logit_softcapping", family.default_logit_softcap);
  if (family.reads("query_pre_attn_scalar")) {
    const double scalar = fields.number("query_pre_attn_scalar", 1e-3, 1e6).value_or(256);
    config.attention_scale = static_cast<float>(1 / std::sqrt(scalar));
  }
  if (family.scaled_embedding) {
    config.embedding_scale = std::sqrt(static_cast<float>(config.hidden_size));
  }
  config.norms_plus_one = family.norms_plus_one;
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
  } else if (family.default_head_dim > 0) {
    config.head_dim = family.default_head_dim;
  } else if (config.hidden_size % config.num_heads == 0) {
    config.head_dim = config.hidden_size / config.num_heads;
  } else {
    fields.fail("'num_attention_heads' ({}) does not divide 'hidden_size' ({})", config.num_heads,
        config.hidden_size);
  }
  config.rms_norm_eps =
      static_cast<float>(fields.number("rms_norm_eps", 0, 1).value_or(family.default_eps));
  config.tie_embeddings = fields.boolean("tie_word_embeddings").value_or(family.default_tie);
  config.attention_bias = fields.boolean("attention_bias").value_or(family.qkv_bias);
  config.mlp_bias = fields.boolean("mlp_bias").value_or(false);
  const bool attention_known =
      family.attention_bias_switch || config.attention_bias == family.qkv_bias;
  if (!attention_known || (config.mlp_bias && !family.mlp_bias_switch)) {
    fields.fail("the biases asked for are not those of the family '{}'", family.name);
  }
}

}  // namespace

ModelConfig parse_hf_config(std::string_view config_json, std::string_view generation_config_json,
    const std::string& path) {
  const std::string where = fmt::format("config.json of '{}'", path);
  const json::object object = parse_json_object(config_json, where);
  const JsonFields fields(object, where);
  const auto model_type = fields.text("model_type");
  if (!model_type) fields.fail("'model_type' is missing: this is not the config of a model");
  const Family* family = find_family(*model_type);
  if (family == nullptr) {
    fields.fail("the model type '{}' is not supported; supported are: {}", *model_type,
        supported_families());
  }
  check_architectures(fields);
  refuse_what_changes_the_result(fields, *family);

  ModelConfig config;
  config.family = family->name;
  read_shape(fields, *family, config);
  read_scales(fields, *family, config);
  read_layers(fields, *family, config);
  read_ropes(fields, *family, config);
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
  for (const RopeConfig* rope : {&config.rope, &config.local_rope}) {
    if (rope->dim % 2 != 0 || rope->dim < 4 || rope->dim > config.head_dim) {
      fail("{} of {} elements of a head cannot be rotated: they must be even and at least 4",
          rope->dim, config.head_dim);
    }
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
      norms_plus_one, attention_scale, attention_softcap, logit_softcap, embedding_scale,
      eos_token_ids, bos_token_id);
  for (const RopeConfig* r : {&rope, &local_rope}) {
    out(r->kind, r->dim, r->theta, r->factor, r->low_freq_factor, r->high_freq_factor,
        r->original_max_position, r->beta_fast, r->beta_slow, r->attention_factor, r->yarn_truncate,
        r->freq_factors, r->short_factors, r->interleaved);
  }
  for (const LayerConfig& layer : layers) out(layer.window, layer.rope);
  uint64_t hash = 0;
  for (const uint8_t byte : out.take()) hash = hash_combine(hash, byte);
  return hash;
}

}  // namespace millrace
