// The table of rotary embedding and its formulas (declared in config.h).
#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "engine/base/check.h"
#include "engine/model/config.h"

namespace millrace {

namespace {

using Frequencies = std::vector<double>;  // [P/2], radians per position

Frequencies plain_frequencies(double theta, int32_t head_dim) {
  Frequencies f(static_cast<size_t>(head_dim / 2));
  for (size_t i = 0; i < f.size(); ++i) {
    f[i] = std::pow(theta, -2.0 * static_cast<double>(i) / head_dim);
  }
  return f;
}

// Long waves are slowed by `factor`, short ones kept, those between blended.
void scale_llama3(const RopeConfig& rope, Frequencies& frequencies) {
  const auto original = static_cast<double>(rope.original_max_position);
  for (double& f : frequencies) {
    const double turns = original * f / (2 * std::numbers::pi);  // over the original context
    if (turns > rope.high_freq_factor) continue;
    if (turns < rope.low_freq_factor) {
      f /= rope.factor;
      continue;
    }
    const double keep =
        (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
    f *= (1 - keep) / rope.factor + keep;
  }
}

// As llama3, but the blend is linear in the dimension's index.
void scale_yarn(const RopeConfig& rope, int32_t head_dim, Frequencies& frequencies) {
  const auto original = static_cast<double>(rope.original_max_position);
  const auto dimension_of = [&](double turns) {
    return head_dim * std::log(original / (turns * 2 * std::numbers::pi)) /
           (2 * std::log(rope.theta));
  };
  double low = dimension_of(rope.beta_fast);
  double high = dimension_of(rope.beta_slow);
  if (rope.yarn_truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, head_dim - 1.0);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double slowed = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    frequencies[i] *= slowed / rope.factor + (1 - slowed);
  }
}

double ntk_theta(const RopeConfig& rope, int32_t head_dim, int32_t max_position) {
  const auto original = static_cast<double>(rope.original_max_position);
  const double length = std::max<double>(max_position, original);
  return rope.theta *
         std::pow(rope.factor * length / original - (rope.factor - 1), head_dim / (head_dim - 2.0));
}

}  // namespace

double yarn_magnitude(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

double longrope_magnitude(const RopeConfig& rope) {
  const auto original = static_cast<double>(rope.original_max_position);
  return rope.factor <= 1 ? 1.0 : std::sqrt(1 + std::log(rope.factor) / std::log(original));
}

void fill_rope_table(const RopeConfig& rope, int32_t max_position, float* cos_sin) {
  const int32_t d = rope.dim;
  const bool dynamic = rope.kind == RopeKind::kDynamicNtk;
  Frequencies f = plain_frequencies(dynamic ? ntk_theta(rope, d, max_position) : rope.theta, d);
  if (rope.kind == RopeKind::kLinear) {
    for (double& x : f) x /= rope.factor;
  }
  if (rope.kind == RopeKind::kLlama3) scale_llama3(rope, f);
  if (rope.kind == RopeKind::kYarn) scale_yarn(rope, d, f);
  const bool is_short =
      rope.kind == RopeKind::kLongRope && max_position <= rope.original_max_position;
  const std::vector<float>& factors = is_short ? rope.short_factors : rope.freq_factors;
  if (!factors.empty()) {
    CHECK(factors.size() == f.size(), "{} factors for {} frequencies", factors.size(), f.size());
    for (size_t i = 0; i < f.size(); ++i) f[i] /= factors[i];
  }
  for (int32_t position = 0; position < max_position; ++position) {
    float* row = cos_sin + int64_t{position} * d;
    for (size_t i = 0; i < f.size(); ++i) {
      row[i] = static_cast<float>(std::cos(position * f[i]) * rope.attention_factor);
      row[f.size() + i] = static_cast<float>(std::sin(position * f[i]) * rope.attention_factor);
    }
  }
}

}  // namespace millrace
