#include "engine/kernels/cpu/cpu_ops.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

#include "engine/kernels/cpu/philox.h"

namespace millrace {

namespace {

// Vectors the size of a vocabulary, kept by each thread from row to row.
struct SamplerScratch {
  std::vector<float> changed;   // by biases and penalties
  std::vector<float> scaled;    // (logit - max) / temperature
  std::vector<float> weights;   // exp(scaled)
  std::vector<int32_t> counts;  // of each id; all zero between rows
  std::vector<float> in_bin;    // values of one bin
};

SamplerScratch& scratch() {
  static thread_local SamplerScratch s;
  return s;
}

// A histogram of values at most 0, `max` having been taken off: bin b holds (-(b+1)/32, -b/32],
// the last bin the rest. The k-th value, or the one where a given mass is reached, lies in one
// bin, and only that bin's values are ever sorted.
constexpr int kBins = 1024;
int bin_of(float below_max) {
  const float b = below_max * -32.0f;
  return b < static_cast<float>(kBins - 1) ? static_cast<int>(b) : kBins - 1;
}

// The k-th largest of x, less max; k in [1, size].
float kth_largest(std::span<const float> x, float max, int64_t k) {
  std::array<int64_t, kBins> counts{};
  for (const float v : x) ++counts[static_cast<size_t>(bin_of(v - max))];
  int bin = 0;
  for (; k > counts[static_cast<size_t>(bin)]; ++bin) k -= counts[static_cast<size_t>(bin)];
  std::vector<float>& found = scratch().in_bin;
  found.clear();
  for (const float v : x) {
    if (bin_of(v - max) == bin) found.push_back(v - max);
  }
  std::nth_element(found.begin(), found.begin() + (k - 1), found.end(), std::greater<>());
  return found[static_cast<size_t>(k - 1)];
}

// The largest c so that tokens of x >= c hold at least `share` of the mass of those of x >= cut.
float nucleus_cut(
    std::span<const float> x, std::span<const float> weights, float cut, double share) {
  std::array<double, kBins> mass{};
  for (size_t i = 0; i < x.size(); ++i) {
    if (x[i] >= cut) mass[static_cast<size_t>(bin_of(x[i]))] += double{weights[i]};
  }
  double wanted = share * std::accumulate(mass.begin(), mass.end(), 0.0);
  int bin = 0;
  for (; bin < kBins - 1 && mass[static_cast<size_t>(bin)] < wanted; ++bin) {
    wanted -= mass[static_cast<size_t>(bin)];
  }
  std::vector<float>& found = scratch().in_bin;
  found.clear();
  for (const float v : x) {
    if (v >= cut && bin_of(v) == bin) found.push_back(v);
  }
  std::sort(found.begin(), found.end(), std::greater<>());
  for (const float v : found) {
    wanted -= std::exp(double{v});
    if (wanted <= 0) return v;
  }
  return found.empty() ? cut : found.back();  // rounding alone kept it from being reached
}

// Adds the biases: to the logits given, or where no others are allowed to those of a floor.
void bias(std::span<const float> logits, const SampleRow& row, std::span<float> out) {
  if (row.params->only_listed) std::ranges::fill(out, kForbidden);
  for (const TokenBias& entry : std::span(row.biases, static_cast<size_t>(row.num_biases))) {
    CHECK(entry.token >= 0 && static_cast<size_t>(entry.token) < logits.size());
    const auto i = static_cast<size_t>(entry.token);
    out[i] = std::max(logits[i] + entry.bias, kForbidden);
  }
}

// The logits after biases and penalties: those given when there are none.
std::span<const float> change(std::span<const float> logits, const SampleRow& row) {
  const SamplingParams& p = *row.params;
  if (!row.changes_logits()) return logits;
  SamplerScratch& s = scratch();
  s.changed.assign(logits.begin(), logits.end());
  bias(logits, row, s.changed);
  if (!p.has_penalties()) return s.changed;
  s.counts.resize(std::max(s.counts.size(), logits.size()), 0);
  const auto valid = [&](int32_t id) {
    CHECK(id >= 0 && static_cast<size_t>(id) < logits.size(), "id {} of {}", id, logits.size());
    return static_cast<size_t>(id);
  };
  CHECK(row.num_prompt >= 0 && row.num_prompt <= row.num_ids);
  const std::span<const int32_t> ids(row.ids, static_cast<size_t>(row.num_ids));
  for (const int32_t id : ids.subspan(static_cast<size_t>(row.num_prompt))) ++s.counts[valid(id)];
  // Each id once: a count below zero says that it has had its turn.
  const auto once = [&](int32_t id) {
    const size_t i = valid(id);
    const int32_t count = s.counts[i];
    if (count < 0) return;
    s.counts[i] = -1;
    float& logit = s.changed[i];
    logit = logit > 0 ? logit / p.repetition_penalty : logit * p.repetition_penalty;
    if (count > 0) {
      logit -= p.presence_penalty + p.frequency_penalty * static_cast<float>(count);
    }
    logit = std::clamp(logit, kForbidden, -kForbidden);
  };
  for (const int32_t id : ids) once(id);
  for (const int32_t id : ids) s.counts[valid(id)] = 0;
  return s.changed;
}

// The n most likely tokens, best first, ties by lower id.
std::vector<TokenLogprob> top_logprobs(
    std::span<const float> logits, float max, double log_total, int64_t n) {
  n = std::min({n, int64_t{kMaxLogprobs}, static_cast<int64_t>(logits.size())});
  if (n <= 0) return {};
  const float cut = kth_largest(logits, max, n);
  std::vector<TokenLogprob> top;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] - max >= cut) top.push_back({static_cast<int32_t>(i), logits[i]});
  }
  std::stable_sort(top.begin(), top.end(),
      [](const TokenLogprob& a, const TokenLogprob& b) { return a.logprob > b.logprob; });
  top.resize(static_cast<size_t>(n));
  for (TokenLogprob& t : top) t.logprob = static_cast<float>(double{t.logprob} - max - log_total);
  return top;
}

// argmax of x + Gumbel noise over tokens of x >= cut. x is at most 0 and reaches it; weights are
// exp(x). With u uniform in (0, 1) the noise -log(-log u) is at most -log(1 - u), so a token can
// only beat `best` where (1 - u) * exp(best) < exp(x): one product for most, logarithms for few.
int32_t draw(std::span<const float> x, std::span<const float> weights, float cut, uint64_t seed,
    uint64_t position) {
  constexpr double kUnit = 0x1p-32;
  double best = -std::numeric_limits<double>::infinity();
  double exp_best = 0;
  int32_t token = 0;
  for (size_t i = 0; i < x.size(); i += 4) {
    const size_t end = std::min(i + 4, x.size());
    if (std::all_of(x.begin() + static_cast<ptrdiff_t>(i), x.begin() + static_cast<ptrdiff_t>(end),
            [cut](float v) { return v < cut; })) {
      continue;
    }
    const PhiloxBlock words = sampling_noise(seed, position, static_cast<uint32_t>(i / 4));
    for (size_t j = i; j < end; ++j) {
      const double u = (static_cast<double>(words[j - i]) + 0.5) * kUnit;
      // The margin covers the rounding of an fp32 weight.
      if (x[j] < cut || (1 - u) * exp_best > double{weights[j]} * 1.00001) continue;
      const double score = double{x[j]} - std::log(-std::log(u));
      if (score > best) {
        best = score;
        exp_best = std::exp(best);
        token = static_cast<int32_t>(j);
      }
    }
  }
  return token;
}

int32_t draw_filtered(
    const CpuKernels& kernels, std::span<const float> logits, float max, const SampleRow& row) {
  const SamplingParams& p = *row.params;
  SamplerScratch& s = scratch();
  s.scaled.resize(logits.size());
  s.weights.resize(logits.size());
  const auto size = static_cast<int64_t>(logits.size());
  const float factor = std::min(1.0f / p.temperature, std::numeric_limits<float>::max());
  kernels.scaled_exp(logits.data(), size, max, factor, s.scaled.data(), s.weights.data());
  float cut = -std::numeric_limits<float>::infinity();
  if (p.top_k > 0 && p.top_k < size) cut = kth_largest(s.scaled, 0, p.top_k);
  if (p.top_p < 1) cut = std::max(cut, nucleus_cut(s.scaled, s.weights, cut, double{p.top_p}));
  if (p.min_p > 0) cut = std::max(cut, std::log(p.min_p));
  return draw(s.scaled, s.weights, cut, p.seed, row.position);
}

}  // namespace

SampledRow sample_row(
    const CpuKernels& kernels, std::span<const float> logits, const SampleRow& row) {
  const SamplingParams& params = *row.params;
  const auto size = static_cast<int64_t>(logits.size());
  SampledRow result;
  float max = 0;
  result.finite = kernels.finite_max(logits.data(), size, &max) ? 1 : 0;
  if (result.finite == 0) return result;
  double log_total = 0;
  if (row.num_logprobs() >= 0) {
    log_total = std::log(kernels.scaled_exp(logits.data(), size, max, 1.0f, nullptr, nullptr));
    const auto top = top_logprobs(logits, max, log_total, row.num_logprobs());
    result.num_top = static_cast<int32_t>(top.size());
    std::copy(top.begin(), top.end(), result.top);
  }
  const std::span<const float> changed = change(logits, row);
  float best = max;
  if (row.changes_logits()) kernels.finite_max(changed.data(), size, &best);
  if (row.scored >= 0) {
    CHECK(row.scored < size, "id {} of {}", row.scored, size);
    result.token = row.scored;
  } else if (params.temperature == 0) {
    const auto first = std::find(changed.begin(), changed.end(), best);
    result.token = static_cast<int32_t>(first - changed.begin());
  } else {
    result.token = draw_filtered(kernels, changed, best, row);
  }
  if (row.num_logprobs() >= 0) {
    const float logit = logits[static_cast<size_t>(result.token)];
    result.logprob = static_cast<float>(double{logit} - max - log_total);
  }
  return result;
}

}  // namespace millrace
