// config.json: what is read, what is defaulted, and what is refused with which words.
#include "engine/model/config.h"

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>

#include "tests/engine/model/files.h"

namespace millrace {
namespace {

namespace json = boost::json;

json::object small_config() {
  return json::parse(R"({"model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
      "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
      "vocab_size": 512, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
      "bos_token_id": 1, "eos_token_id": 2})")
      .as_object();
}

ModelConfig parse(const json::object& fields, std::string_view generation = "") {
  return parse_hf_config(json::serialize(fields), generation, "m");
}

// small_config() with the fields of `changes` put over it.
json::object changed(std::string_view changes) {
  json::object fields = small_config();
  const json::value parsed = json::parse({changes.data(), changes.size()});
  for (const auto& pair : parsed.as_object()) {
    fields[pair.key()] = pair.value();
  }
  return fields;
}

TEST(Config, ReadsTheShape) {
  const ModelConfig config = parse(small_config());
  EXPECT_EQ(config.family, "llama");
  EXPECT_EQ(config.num_layers, 2);
  EXPECT_EQ(config.hidden_size, 64);
  EXPECT_EQ(config.intermediate_size, 96);
  EXPECT_EQ(config.num_heads, 4);
  EXPECT_EQ(config.num_kv_heads, 2);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.vocab_size, 512);
  EXPECT_EQ(config.max_position, 256);
  EXPECT_FLOAT_EQ(config.rms_norm_eps, 1e-5f);
  EXPECT_EQ(config.bos_token_id, 1);
  EXPECT_EQ(config.eos_token_ids, (std::vector<int32_t>{2}));
  EXPECT_FALSE(config.tie_embeddings);
  EXPECT_FALSE(config.rope.interleaved);
  EXPECT_EQ(config.rope.kind, RopeKind::kDefault);
  EXPECT_EQ(config.rope.theta, 10000.0);
}

TEST(Config, DefaultsAreTransformers) {
  json::object fields = small_config();
  fields.erase("num_key_value_heads");
  fields.erase("rms_norm_eps");
  fields.erase("eos_token_id");
  fields["bos_token_id"] = nullptr;
  const ModelConfig config = parse(fields);
  EXPECT_EQ(config.num_kv_heads, 4);
  EXPECT_FLOAT_EQ(config.rms_norm_eps, 1e-6f);
  EXPECT_TRUE(config.eos_token_ids.empty());
  EXPECT_EQ(config.bos_token_id, -1);
}

TEST(Config, GenerationConfigReplacesTheEnds) {
  EXPECT_EQ(parse(small_config(), R"({"eos_token_id": [7, 8]})").eos_token_ids,
      (std::vector<int32_t>{7, 8}));
  EXPECT_EQ(
      parse(small_config(), R"({"temperature": 0.6})").eos_token_ids, (std::vector<int32_t>{2}));
  expect_model_error(
      [] { parse(small_config(), R"({"eos_token_id": [7, "x"]})"); }, "generation_config.json");
}

TEST(Config, MistralWithoutAWindow) {
  EXPECT_EQ(
      parse(changed(R"({"model_type": "mistral", "sliding_window": null})")).family, "mistral");
  EXPECT_EQ(
      parse(changed(R"({"model_type": "mistral", "sliding_window": 256})")).family, "mistral");
  // Absent means 4,096 there: more than this context, less than a larger one.
  EXPECT_EQ(parse(changed(R"({"model_type": "mistral"})")).family, "mistral");
  EXPECT_EQ(parse(changed(R"({"model_type": "mistral", "max_position_embeddings": 8192})"))
                .layers[1]
                .window,
      4096);
  EXPECT_EQ(
      parse(changed(R"({"model_type": "mistral", "sliding_window": 256})")).layers[1].window, 0);
}

// Per layer: window, then how it is rotated (m: main, l: local, -: not).
std::string layers_of(std::string_view changes) {
  std::string said;
  for (const LayerConfig& layer : parse(changed(changes)).layers) {
    said += std::to_string(layer.window) + "ml-"[static_cast<size_t>(layer.rope)] + " ";
  }
  return said;
}

TEST(Config, WindowsAndRotationByLayer) {
  EXPECT_EQ(layers_of(R"({"num_hidden_layers": 3})"), "0m 0m 0m ");
  EXPECT_EQ(layers_of(R"({"model_type": "phi3", "sliding_window": 8})"), "8m 8m ");
  EXPECT_EQ(layers_of(R"({"model_type": "qwen2", "sliding_window": 8, "max_window_layers": 1})"),
      "0m 0m ");
  EXPECT_EQ(layers_of(R"({"model_type": "qwen2", "sliding_window": 8, "max_window_layers": 1,
                          "use_sliding_window": true})"),
      "0m 8m ");
  EXPECT_EQ(layers_of(R"({"model_type": "qwen3", "sliding_window": 8, "use_sliding_window": true,
                          "layer_types": ["sliding_attention", "full_attention"]})"),
      "8m 0m ");
  EXPECT_EQ(layers_of(R"({"model_type": "gemma2", "sliding_window": 8, "num_hidden_layers": 3})"),
      "8m 0m 8m ");
  EXPECT_EQ(layers_of(R"({"model_type": "gemma3_text", "sliding_window": 8,
                          "num_hidden_layers": 7})"),
      "8l 8l 8l 8l 8l 0m 8l ");
  // A window as wide as the context hides nothing, but the layer keeps its rope.
  EXPECT_EQ(layers_of(R"({"model_type": "gemma3_text", "sliding_window": 256,
                          "layer_types": ["full_attention", "sliding_attention"]})"),
      "0m 0l ");
  EXPECT_EQ(layers_of(R"({"model_type": "smollm3", "num_hidden_layers": 4})"), "0m 0m 0m 0- ");
  EXPECT_EQ(layers_of(R"({"model_type": "smollm3", "no_rope_layers": [0, 1]})"), "0- 0m ");
  EXPECT_EQ(layers_of(R"({"model_type": "smollm3", "no_rope_layers": [0, 1], "sliding_window": 8,
                          "use_sliding_window": true})"),
      "8- 0m ");
}

TEST(Config, ScalesAndCaps) {
  const ModelConfig gemma = parse(changed(R"({"model_type": "gemma2"})"));
  EXPECT_EQ(gemma.head_dim, 256);
  EXPECT_EQ(gemma.attention_softcap, 50);
  EXPECT_EQ(gemma.logit_softcap, 30);
  EXPECT_EQ(gemma.attention_scale, 1.0f / 16);
  EXPECT_EQ(gemma.embedding_scale, 8);
  EXPECT_TRUE(gemma.norms_plus_one && gemma.tie_embeddings);
  const ModelConfig other = parse(changed(R"({"model_type": "gemma2", "query_pre_attn_scalar": 144,
      "attn_logit_softcapping": null, "final_logit_softcapping": 20})"));
  EXPECT_EQ(other.attention_softcap, 0);
  EXPECT_EQ(other.logit_softcap, 20);
  EXPECT_EQ(other.attention_scale, 1.0f / 12);
  EXPECT_TRUE(parse(changed(R"({"model_type": "qwen2"})")).attention_bias);
  const ModelConfig phi =
      parse(changed(R"({"model_type": "phi3", "partial_rotary_factor": 0.75})"));
  EXPECT_EQ(phi.rope.dim, 12);
}

TEST(Config, SpellingsOfRopeScaling) {
  for (const char* spelling :
      {R"({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}})",
          R"({"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}})",
          R"({"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}})"}) {
    const RopeConfig rope = parse(changed(spelling)).rope;
    EXPECT_EQ(rope.kind, RopeKind::kLinear) << spelling;
    EXPECT_EQ(rope.theta, 5e5) << spelling;
    EXPECT_EQ(rope.factor, 2.0) << spelling;
  }
  EXPECT_EQ(parse(changed(R"({"rope_scaling": null})")).rope.kind, RopeKind::kDefault);
}

struct Refused {
  const char* changes;
  const char* message;
};

TEST(Config, RefusesByName) {
  for (const Refused& c : {
           Refused{R"({"model_type": "gpt2"})", "supported are: llama, mistral, qwen2"},
           {R"({"model_type": null})", "'model_type' is missing"},
           {R"({"architectures": ["LlamaForSequenceClassification"]})", "does not generate text"},
           {R"({"hidden_act": "gelu"})", "'hidden_act' is 'gelu'"},
           {R"({"sliding_window": 128})", "'sliding_window' is 128"},
           {R"({"partial_rotary_factor": 0.5})", "'partial_rotary_factor'"},
           {R"({"quantization_config": {"quant_method": "gptq"}})", "'quantization_config'"},
           {R"({"num_local_experts": 8})", "'num_local_experts'"},
           {R"({"final_logit_softcapping": 30.0})", "'final_logit_softcapping'"},
           {R"({"layer_types": ["full_attention", "sliding_attention"]})", "'layer_types'"},
           {R"({"model_type": "mistral", "attention_bias": true})", "the biases asked for"},
           {R"({"rope_scaling": {"rope_type": "longrope", "factor": 2}})", "'long_factor'"},
           {R"({"model_type": "gemma3_text", "attn_logit_softcapping": 50})", "'attn_logit_"},
           {R"({"model_type": "gemma2", "hidden_activation": "gelu"})", "'hidden_activation' is"},
           {R"({"model_type": "gemma3"})", "'gemma3' is not supported"},
           {R"({"model_type": "qwen2", "attention_bias": false})", "the biases asked for"},
           {R"({"model_type": "qwen2", "layer_types": ["sliding_attention", "full_attention"]})",
               "sliding_attention of layer 0"},
           {R"({"model_type": "phi3", "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention"]})",
               "full_attention of layer 1"},
           {R"({"model_type": "qwen3", "layer_types": ["full_attention"]})", "1 entries for 2"},
           {R"({"model_type": "qwen3", "layer_types": ["full_attention", "chunked_attention"]})",
               "'chunked_attention'"},
           {R"({"model_type": "smollm3", "no_rope_layers": [1]})", "1 entries for 2"},
           {R"({"no_rope_layers": [1, 1]})", "'no_rope_layers' is set"},
           {R"({"model_type": "phi3", "partial_rotary_factor": 0.7})", "11 of 16 elements"},
           {R"({"model_type": "phi3", "rope_scaling": {"type": "su", "long_factor": [1, 2],
                "short_factor": [1, 2]}})",
               "'long_factor' is not a list of 8"},
           {R"({"rope_scaling": {"rope_type": "linear"}})", "'factor' is missing"},
           {R"({"rope_scaling": {"rope_type": "llama3", "factor": 8}})", "'low_freq_factor'"},
           {R"({"rope_parameters": {"full_attention": {"rope_type": "default"}}})", "layer type"},
           {R"({"rope_scaling": {"type": "linear", "factor": -2}})", "'factor' is -2"},
           {R"({"rope_theta": 0})", "'rope_theta'"},
           {R"({"num_hidden_layers": 1025})", "from 1 to 1024"},
           {R"({"num_hidden_layers": 0})", "'num_hidden_layers' is 0"},
           {R"({"num_hidden_layers": -1})", "'num_hidden_layers' is -1"},
           {R"({"num_hidden_layers": 2.5})", "not an integer"},
           {R"({"num_hidden_layers": 1e1})", "not an integer"},
           {R"({"num_hidden_layers": "2"})", "not an integer"},
           {R"({"num_hidden_layers": 18446744073709551615})", "not an integer"},
           {R"({"hidden_size": 65537})", "'hidden_size'"},
           {R"({"hidden_size": null})", "'hidden_size' is missing"},
           {R"({"vocab_size": 2000001})", "'vocab_size'"},
           {R"({"max_position_embeddings": 2147483648})", "'max_position_embeddings'"},
           {R"({"num_attention_heads": 5})", "does not divide"},
           {R"({"num_key_value_heads": 3})", "do not divide 4 heads"},
           {R"({"head_dim": 15})", "must be even"},
           {R"({"rms_norm_eps": 0})", "epsilon"},
           {R"({"rms_norm_eps": "small"})", "'rms_norm_eps'"},
           {R"({"tie_word_embeddings": 1})", "not true or false"},
           {R"({"eos_token_id": 512})", "token id 512"},
           {R"({"eos_token_id": -1})", "'eos_token_id'"},
       }) {
    SCOPED_TRACE(c.changes);
    expect_model_error([&] { parse(changed(c.changes)); }, c.message);
  }
}

TEST(Config, RefusesWhatIsNotStrictJson) {
  const auto parse_text = [](const std::string& text) { parse_hf_config(text, "", "m"); };
  expect_model_error([&] { parse_text(""); }, "not valid JSON");
  expect_model_error([&] { parse_text("[]"); }, "does not hold a JSON object");
  expect_model_error([&] { parse_text("{} {}"); }, "not valid JSON");
  expect_model_error([&] { parse_text(R"({"a": 1, "a": 2})"); }, "'a' is given twice");
  expect_model_error([&] { parse_text(R"({"a": 1e400})"); }, "too large");
  expect_model_error([&] { parse_text("{\"a\": \"\xff\"}"); }, "not valid JSON");
  expect_model_error([&] { parse_text(R"({"a": NaN})"); }, "not valid JSON");
  std::string deep = "{\"a\": ";
  for (int i = 0; i < 100'000; ++i) deep += '[';
  expect_model_error([&] { parse_text(deep); }, "not valid JSON");
}

TEST(Config, HashTellsModelsApart) {
  const uint64_t hash = parse(small_config()).hash();
  EXPECT_EQ(parse(small_config()).hash(), hash);
  for (const char* changes :
      {R"({"num_hidden_layers": 3})", R"({"rope_theta": 5e5})", R"({"tie_word_embeddings": true})",
          R"({"eos_token_id": [2, 3]})", R"({"rms_norm_eps": 1e-6})",
          R"({"rope_scaling": {"type": "linear", "factor": 2}})", R"({"mlp_bias": true})"}) {
    EXPECT_NE(parse(changed(changes)).hash(), hash) << changes;
  }
}

}  // namespace
}  // namespace millrace
