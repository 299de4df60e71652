#include <algorithm>
#include <boost/json/value.hpp>

#include "engine/model/families.h"
#include "engine/model/json_fields.h"

namespace millrace {

namespace {

namespace json = boost::json;

constexpr double kMaxTheta = 1e12;

RopeKind rope_kind(const JsonFields& rope, bool yarn_is_longrope) {
  const std::string kind = rope.text("rope_type").value_or(rope.text("type").value_or("default"));
  // What Phi-3's first files said.
  if (yarn_is_longrope && (kind == "su" || kind == "yarn")) return RopeKind::kLongRope;
  constexpr std::pair<std::string_view, RopeKind> kKinds[] = {{"default", RopeKind::kDefault},
      {"linear", RopeKind::kLinear}, {"llama3", RopeKind::kLlama3},
      {"dynamic", RopeKind::kDynamicNtk}, {"yarn", RopeKind::kYarn},
      {"longrope", RopeKind::kLongRope}};
  for (const auto& [name, value] : kKinds) {
    if (kind == name) return value;
  }
  rope.fail(
      "the rope scaling '{}' is not supported; known are default, linear, llama3, dynamic, yarn "
      "and longrope",
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

std::vector<float> longrope_factors(const JsonFields& scaling, const char* name, int32_t dim) {
  const auto given = scaling.numbers(name);
  const auto count = static_cast<size_t>(dim / 2);
  const auto usable = [](double factor) { return factor > 1e-6 && factor < 1e6; };
  if (!given || given->size() != count || !std::ranges::all_of(*given, usable)) {
    scaling.fail("'{}' is not a list of {} positive numbers", name, count);
  }
  return {given->begin(), given->end()};
}

// What a kind of scaling needs beyond its factor.
void read_scaling(const JsonFields& scaling, RopeConfig& rope) {
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
  } else if (rope.kind == RopeKind::kLongRope) {
    rope.freq_factors = longrope_factors(scaling, "long_factor", rope.dim);
    rope.short_factors = longrope_factors(scaling, "short_factor", rope.dim);
    rope.attention_factor =
        scaling.number("attention_factor", 1e-6, 1e6).value_or(longrope_magnitude(rope));
  }
}

// `given`: one rope's object, or null; `rope` comes with what it is when silent.
void read_rope(const JsonFields& fields, const json::value* given, const Family& family,
    int64_t max_position, RopeConfig& rope) {
  static const json::object kSilent;
  if (given != nullptr && !given->is_object()) fields.fail("the rope scaling is not a JSON object");
  const json::object& object = given != nullptr ? given->as_object() : kSilent;
  const JsonFields scaling(object, fields.where() + " (rope scaling)");
  for (const auto& [key, value] : object) {
    if (!value.is_object()) continue;
    scaling.fail("'{}': one rope per layer type is not supported for the family '{}'",
        std::string_view(key), family.name);
  }
  constexpr std::string_view kPartial = "partial_rotary_factor";
  const bool is_partial = family.reads(kPartial);
  rope.kind = rope_kind(scaling, is_partial);
  rope.theta = scaling.number("rope_theta", 1.01, kMaxTheta).value_or(rope.theta);
  // transformers 4 has it beside the scaling.
  const double beside = is_partial ? fields.number(kPartial, 0, 1).value_or(1) : 1;
  const double part = scaling.number(kPartial, 0, 1).value_or(beside);
  if (part != 1 && !is_partial) {
    scaling.fail("'{}' other than 1 is not supported for the family '{}'", kPartial, family.name);
  }
  rope.dim = static_cast<int32_t>(rope.dim * part);
  if (rope.kind == RopeKind::kDefault) return;

  // Dynamic scaling takes the context itself as the original one.
  rope.original_max_position = max_position;
  if (rope.kind != RopeKind::kDynamicNtk) {
    constexpr std::string_view kName = "original_max_position_embeddings";
    const auto inner = scaling.integer(kName, 1, ConfigLimits::kPositions);
    rope.original_max_position =
        fields.integer(kName, 1, ConfigLimits::kPositions).value_or(inner.value_or(max_position));
  }
  const auto factor = scaling.number("factor", 1e-6, 1e6);
  const bool by_context = rope.kind == RopeKind::kYarn || rope.kind == RopeKind::kLongRope;
  if (!factor && !by_context) scaling.fail("'factor' is missing");
  rope.factor = factor.value_or(
      static_cast<double>(max_position) / static_cast<double>(rope.original_max_position));
  read_scaling(scaling, rope);
}

}  // namespace

// `rope_scaling` (transformers 4, "type" or "rope_type") or `rope_parameters` (transformers 5),
// which may hold one object for each layer type.
void read_ropes(const JsonFields& fields, const Family& family, ModelConfig& config) {
  config.rope.theta = fields.number("rope_theta", 1.01, kMaxTheta).value_or(family.default_theta);
  config.rope.dim = config.local_rope.dim = config.head_dim;
  const json::value* given = fields.find("rope_scaling");
  if (given == nullptr || (given->is_object() && given->as_object().empty())) {
    given = fields.find("rope_parameters");
  }
  const json::value* local = nullptr;
  constexpr std::string_view kLocalTheta = "rope_local_base_freq";
  if (family.reads(kLocalTheta)) {
    config.local_rope.theta = fields.number(kLocalTheta, 1.01, kMaxTheta).value_or(10'000);
    const json::object* both = given != nullptr ? given->if_object() : nullptr;
    if (both != nullptr && both->contains("full_attention")) {
      given = both->if_contains("full_attention");
      local = both->if_contains("sliding_attention");
    }
  }
  read_rope(fields, given, family, config.max_position, config.rope);
  read_rope(fields, local, family, config.max_position, config.local_rope);
}

}  // namespace millrace
