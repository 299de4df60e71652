#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "engine/kernels/cpu/philox.h"
#include "tests/engine/kernels/reference.h"

namespace millrace {
namespace {

using reference::Random;

// kat_vectors of the authors' Random123.
TEST(PhiloxTest, KnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
      (PhiloxBlock{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
      (PhiloxBlock{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
      (PhiloxBlock{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

class SampleTest : public testing::TestWithParam<const CpuKernels*> {
 protected:
  SampleResult sample(const std::vector<float>& logits, const SamplingParams& params,
      uint64_t position = 0, const std::vector<int32_t>& prompt = {},
      const std::vector<int32_t>& output = {}) {
    std::vector<float> copy = logits;
    const TensorView view(copy.data(), DType::kF32, {1, static_cast<int64_t>(copy.size())});
    const SampleRow row{&params, position, prompt, output};
    SampleResult result;
    ops_->sample(view, {&row, 1}, {&result, 1});
    return result;
  }

  // Draws at `draws` positions against what the definition says, by chi-square.
  void expect_distribution(
      const std::vector<float>& logits, SamplingParams params, const std::vector<double>& want) {
    constexpr int kDraws = 40000;
    params.seed = 1234;
    std::vector<int> counts(logits.size());
    for (int i = 0; i < kDraws; ++i) {
      ++counts[static_cast<size_t>(sample(logits, params, static_cast<uint64_t>(i)).token.token)];
    }
    double chi_square = 0;
    int cells = 0;
    for (size_t t = 0; t < want.size(); ++t) {
      if (want[t] == 0) {
        EXPECT_EQ(counts[t], 0) << "token " << t << " is filtered";
        continue;
      }
      const double expected = want[t] * kDraws;
      chi_square += (counts[t] - expected) * (counts[t] - expected) / expected;
      ++cells;
    }
    // Mean and deviation of chi-square with n degrees of freedom: n, sqrt(2n).
    const double n = cells - 1;
    EXPECT_LT(chi_square, n + 4 * std::sqrt(2 * n) + 1e-9) << cells << " cells";
  }

  ThreadPool pool_{2};
  std::unique_ptr<Ops> ops_ = make_cpu_ops_for(pool_, *GetParam());
  Random random_{31};
};

// The filters in the order ops.h states, by sorting.
std::vector<double> filtered(const std::vector<float>& logits, const SamplingParams& params) {
  std::vector<size_t> order(logits.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(
      order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  std::vector<double> p(logits.size());
  for (size_t i = 0; i < p.size(); ++i) p[i] = std::exp(double{logits[i]} / params.temperature);
  const auto keep = [&](size_t n) {
    for (size_t i = n; i < order.size(); ++i) p[order[i]] = 0;
  };
  if (params.top_k > 0) keep(static_cast<size_t>(params.top_k));
  double total = std::accumulate(p.begin(), p.end(), 0.0);
  double seen = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    seen += p[order[i]];
    if (seen >= double{params.top_p} * total) {
      keep(i + 1);
      break;
    }
  }
  for (double& v : p) v = v < double{params.min_p} * p[order[0]] ? 0 : v;
  total = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& v : p) v /= total;
  return p;
}

TEST_P(SampleTest, DrawsFollowTheFilteredDistribution) {
  std::vector<float> logits(23);
  for (float& v : logits) v = random_.normal();
  const SamplingParams all[] = {
      {},
      {.temperature = 0.5f},
      {.temperature = 2.0f, .top_k = 5},
      {.top_p = 0.7f},
      {.temperature = 1.5f, .min_p = 0.2f},
      {.temperature = 1.3f, .top_p = 0.8f, .min_p = 0.15f, .top_k = 12},
      {.top_k = 1},
      {.top_p = 1e-6f},
  };
  for (const SamplingParams& params : all) {
    expect_distribution(logits, params, filtered(logits, params));
  }
}

TEST_P(SampleTest, FiltersOverALargeVocabularyKeepTheRightTokens) {
  std::vector<float> logits(49152);
  for (float& v : logits) v = 3 * random_.normal();
  for (const SamplingParams params :
      {SamplingParams{.top_k = 40}, SamplingParams{.top_k = 3000}, SamplingParams{.top_p = 0.9f},
          SamplingParams{.min_p = 0.1f}, SamplingParams{.top_p = 0.5f, .top_k = 400}}) {
    const std::vector<double> want = filtered(logits, params);
    for (uint64_t i = 0; i < 200; ++i) {
      const auto token = static_cast<size_t>(sample(logits, params, i).token.token);
      ASSERT_GT(want[token], 0) << "token " << token;
    }
  }
}

TEST_P(SampleTest, IsTheGumbelArgmaxOfItsNoise) {
  std::vector<float> logits(1001);
  for (float& v : logits) v = 2 * random_.normal();
  const SamplingParams params{.temperature = 0.8f, .seed = 0x123456789abcdefULL};
  for (uint64_t position = 0; position < 50; ++position) {
    double best = -1e300;
    int32_t want = 0;
    for (uint32_t t = 0; t < logits.size(); ++t) {
      const double u = (sampling_noise(params.seed, position, t / 4)[t % 4] + 0.5) * 0x1p-32;
      const double score = double{logits[t]} / double{0.8f} - std::log(-std::log(u));
      if (score > best) {
        best = score;
        want = static_cast<int32_t>(t);
      }
    }
    EXPECT_EQ(sample(logits, params, position).token.token, want);
  }
}

TEST_P(SampleTest, GreedyTakesTheLowestOfTies) {
  std::vector<float> logits(1000, -1.0f);
  logits[700] = logits[31] = logits[999] = 2.5f;
  EXPECT_EQ(sample(logits, {.temperature = 0}).token.token, 31);
}

TEST_P(SampleTest, TinyTemperatureIsGreedyAndHugeIsUniform) {
  std::vector<float> logits = {1, 5, 4.99f, -3};
  for (uint64_t i = 0; i < 100; ++i) {
    EXPECT_EQ(sample(logits, {.temperature = 1e-30f, .seed = i}).token.token, 1);
    EXPECT_EQ(sample(logits, {.temperature = 1e-42f, .seed = i}).token.token, 1);
  }
  expect_distribution(logits, {.temperature = 1e30f}, {0.25, 0.25, 0.25, 0.25});
}

TEST_P(SampleTest, LogprobsAreOfTheRawDistribution) {
  std::vector<float> logits(777);
  for (float& v : logits) v = 4 * random_.normal();
  logits[5] = logits[600] = 20;
  double total = 0;
  for (const float v : logits) total += std::exp(double{v});
  const SamplingParams params{.temperature = 0, .repetition_penalty = 2.0f, .num_logprobs = 5};
  const SampleResult r = sample(logits, params, 0, {5, 5}, {600});
  EXPECT_NE(r.token.token, 5);
  EXPECT_NEAR(
      r.token.logprob, double{logits[static_cast<size_t>(r.token.token)]} - std::log(total), 1e-5);
  ASSERT_EQ(r.token.top.size(), 5u);
  std::vector<int32_t> order(777);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(r.token.top[i].token, order[i]);
    EXPECT_NEAR(r.token.top[i].logprob,
        double{logits[static_cast<size_t>(order[i])]} - std::log(total), 1e-5);
  }
  EXPECT_TRUE(sample(logits, {.num_logprobs = 0}).token.top.empty());
  EXPECT_LT(sample(logits, {.num_logprobs = 0}).token.logprob, 0);
  EXPECT_EQ(sample({1.0f, 2.0f}, {.num_logprobs = 20}).token.top.size(), 2u);
}

TEST_P(SampleTest, Penalties) {
  const std::vector<float> logits = {3.0f, 2.9f, 2.0f, -1.0f, 2.5f};
  const auto greedy = [&](SamplingParams p, const std::vector<int32_t>& prompt,
                          const std::vector<int32_t>& output) {
    p.temperature = 0;
    return sample(logits, p, 0, prompt, output).token.token;
  };
  EXPECT_EQ(greedy({}, {0}, {1}), 0);
  EXPECT_EQ(greedy({.repetition_penalty = 1.1f}, {0, 0, 0}, {}), 1);  // 2.73, once however often
  EXPECT_EQ(greedy({.repetition_penalty = 1.1f}, {0, 4}, {1}), 0);    // 2.73, 2.64, 2.27
  EXPECT_EQ(greedy({.repetition_penalty = 1.3f}, {0}, {1}), 4);
  EXPECT_EQ(greedy({.presence_penalty = 0.3f}, {0}, {}), 0);  // of the output alone
  EXPECT_EQ(greedy({.presence_penalty = 0.3f}, {}, {0, 0}), 1);
  EXPECT_EQ(greedy({.frequency_penalty = 0.06f}, {0, 0}, {0}), 0);
  EXPECT_EQ(greedy({.frequency_penalty = 0.06f}, {}, {0, 0}), 1);
  EXPECT_EQ(greedy({.presence_penalty = -2.0f, .frequency_penalty = -2.0f}, {}, {3, 3}), 3);  // 5
  EXPECT_EQ(greedy({.repetition_penalty = 0.5f}, {3, 4}, {}), 4);  // -0.5, 5
  // Nothing is left behind for the next row.
  EXPECT_EQ(greedy({.presence_penalty = 0.3f}, {}, {}), 0);
}

TEST_P(SampleTest, NonFiniteFailsThatRowAlone) {
  std::vector<float> logits(3 * 50, 0.5f);
  logits[50 + 49] = NAN;
  logits[7] = 2;
  logits[107] = 3;
  const TensorView view(logits.data(), DType::kF32, {3, 50});
  const SamplingParams params{.temperature = 0};
  const std::vector<SampleRow> rows(3, SampleRow{&params, 0, {}, {}});
  std::vector<SampleResult> results(3);
  ops_->sample(view, rows, results);
  EXPECT_TRUE(results[0].finite);
  EXPECT_FALSE(results[1].finite);
  EXPECT_TRUE(results[2].finite);
  EXPECT_EQ(results[0].token.token, 7);
  EXPECT_EQ(results[2].token.token, 7);
}

INSTANTIATE_TEST_SUITE_P(Levels, SampleTest, testing::ValuesIn(cpu_kernel_levels()),
    [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace millrace
