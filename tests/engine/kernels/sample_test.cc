#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "engine/kernels/cpu/philox.h"
#include "tests/engine/kernels/draw_test.h"

namespace millrace {
namespace {

using reference::Matrix;

class SampleTest : public DrawTest {
 protected:
  using DrawTest::sample;
  SampledRow sample(const std::vector<float>& logits, const Draw& draw) {
    Matrix row(1, static_cast<int64_t>(logits.size()));
    row.values = logits;
    return sample(row, std::vector<Draw>{draw}).front();
  }
  SampledRow sample(
      const std::vector<float>& logits, const SamplingParams& params, uint64_t position = 0) {
    return sample(logits, Draw{params, position, {}, {}});
  }
  // The same row at positions 0 to n - 1.
  std::vector<int32_t> tokens(
      const std::vector<float>& logits, const SamplingParams& params, int64_t n) {
    std::vector<int32_t> all;
    for (int64_t first = 0; first < n; first += kTestRows) {
      const int64_t rows = std::min<int64_t>(kTestRows, n - first);
      Matrix m(rows, static_cast<int64_t>(logits.size()));
      std::vector<Draw> draws;
      for (int64_t r = 0; r < rows; ++r) {
        std::copy(logits.begin(), logits.end(), m.row(r));
        draws.push_back({params, static_cast<uint64_t>(first + r), {}, {}});
      }
      for (const SampledRow& row : sample(m, draws)) all.push_back(row.token);
    }
    return all;
  }

  // num_logprobs < 0: none were asked for.
  static void check_logprobs(
      const SampledRow& got, const std::vector<float>& logits, int32_t num_logprobs) {
    const auto n = std::clamp<size_t>(
        num_logprobs < 0 ? 0 : static_cast<size_t>(num_logprobs), 0, logits.size());
    ASSERT_EQ(got.num_top, static_cast<int32_t>(n));
    if (num_logprobs < 0) return;
    double total = 0;
    for (const float v : logits) total += std::exp(double{v});
    std::vector<int32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
    });
    const auto logprob = [&](int32_t token) {
      return double{logits[static_cast<size_t>(token)]} - std::log(total);
    };
    ASSERT_NEAR(got.logprob, logprob(got.token), 2e-5);
    for (size_t i = 0; i < n; ++i) {
      ASSERT_EQ(got.top[i].token, order[i]) << i;
      ASSERT_NEAR(got.top[i].logprob, logprob(order[i]), 2e-5);
    }
  }

  // Draws at many positions against what the definition says, by chi-square.
  void expect_distribution(
      const std::vector<float>& logits, SamplingParams params, const std::vector<double>& want) {
    constexpr int kDraws = 40000;
    params.seed = 1234;
    std::vector<int> counts(logits.size());
    for (const int32_t t : tokens(logits, params, kDraws)) ++counts[static_cast<size_t>(t)];
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

// The logits after penalties, as SamplingParams says.
std::vector<float> penalized(std::vector<float> logits, const Draw& draw) {
  const SamplingParams& p = draw.params;
  std::vector<int> counts(logits.size());
  std::vector<bool> seen(logits.size());
  for (const int32_t id : draw.prompt) seen[static_cast<size_t>(id)] = true;
  for (const int32_t id : draw.output) seen[static_cast<size_t>(id)] = true;
  for (const int32_t id : draw.output) ++counts[static_cast<size_t>(id)];
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!seen[i]) continue;
    logits[i] = logits[i] > 0 ? logits[i] / p.repetition_penalty : logits[i] * p.repetition_penalty;
    if (counts[i] == 0) continue;
    logits[i] -= p.presence_penalty + p.frequency_penalty * static_cast<float>(counts[i]);
  }
  return logits;
}

// `token` is the best of the kept ones by logit and noise, as near as fp32 sums can tell.
void expect_gumbel_argmax(int32_t token, const std::vector<float>& logits, const Draw& draw) {
  SamplingParams p = draw.params;
  std::vector<double> kept = filtered(logits, p);
  const auto at = static_cast<size_t>(token);
  ASSERT_LT(at, logits.size());
  if (p.top_p < 1 && kept[at] == 0) {  // the border of top-p moves with the rounding of sums
    p.top_p = std::min(1.0f, p.top_p + 1e-4f);
    kept = filtered(logits, p);
  } else if (p.top_p < 1) {
    p.top_p -= 1e-4f;
    const std::vector<double> surely = filtered(logits, p);
    for (size_t t = 0; t < kept.size(); ++t) {
      if (t != at && surely[t] == 0) kept[t] = 0;
    }
  }
  ASSERT_GT(kept[at], 0) << "token " << token << " is filtered";
  const auto score = [&](size_t t) {
    const PhiloxBlock words = sampling_noise(p.seed, draw.position, static_cast<uint32_t>(t / 4));
    const double u = (words[t % 4] + 0.5) * 0x1p-32;
    return double{logits[t]} / double{p.temperature} - std::log(-std::log(u));
  };
  const double got = score(at);
  for (size_t t = 0; t < logits.size(); ++t) {
    if (kept[t] == 0) continue;
    ASSERT_LE(score(t), got + 1e-4) << "token " << t << " beats " << token;
  }
}

TEST_P(SampleTest, FiltersOverALargeVocabularyKeepTheRightTokens) {
  std::vector<float> logits(49152);
  for (float& v : logits) v = 3 * random_.normal();
  for (SamplingParams params :
      {SamplingParams{.top_k = 40}, SamplingParams{.top_k = 3000}, SamplingParams{.top_p = 0.9f},
          SamplingParams{.min_p = 0.1f}, SamplingParams{.top_p = 0.5f, .top_k = 400}}) {
    const std::vector<int32_t> got = tokens(logits, params, 192);
    if (params.top_p < 1) params.top_p += 1e-4f;  // its border moves with the rounding of sums
    const std::vector<double> want = filtered(logits, params);
    for (const int32_t token : got) {
      ASSERT_GT(want[static_cast<size_t>(token)], 0) << "token " << token;
    }
  }
}

TEST_P(SampleTest, IsTheGumbelArgmaxOfItsNoise) {
  std::vector<float> logits(1001);
  for (float& v : logits) v = 2 * random_.normal();
  const SamplingParams params{.temperature = 0.8f, .seed = 0x123456789abcdefULL};
  const std::vector<int32_t> got = tokens(logits, params, 50);
  for (size_t i = 0; i < got.size(); ++i) {
    expect_gumbel_argmax(got[i], logits, {params, i, {}, {}});
  }
}

// All kinds of rows in one call, over vocabularies of odd and large sizes.
TEST_P(SampleTest, MixedRowsOfEveryVocabulary) {
  const SamplingParams kinds[] = {
      {.temperature = 0},
      {.temperature = 0.7f, .top_k = 50},
      {.top_p = 0.9f, .num_logprobs = 20},
      {.temperature = 0, .repetition_penalty = 1.3f, .num_logprobs = 3},
      {.temperature = 1.1f, .min_p = 0.05f, .presence_penalty = 1.5f},
      {.temperature = 0.9f,
          .top_p = 0.8f,
          .top_k = 200,
          .repetition_penalty = 0.9f,
          .frequency_penalty = 0.4f,
          .num_logprobs = 0},
      {.temperature = 2.0f, .num_logprobs = 1},
  };
  for (const int64_t vocabulary : {1, 2, 3, 31, 257, 1000, 1001, 32000, 49152, 128256}) {
    Matrix logits = random_.matrix(14, vocabulary);
    std::vector<Draw> draws;
    for (size_t r = 0; r < 14; ++r) {
      Draw draw{kinds[r % 7], 1000 * r, {}, {}};
      draw.params.seed = r << 40 | 77;
      for (int i = 0; i < 300; ++i) {
        auto& ids = i < 200 ? draw.prompt : draw.output;
        ids.push_back(static_cast<int32_t>(random_.below(std::min<int64_t>(vocabulary, 5000))));
      }
      // Some rows peaked as a model's are, with the peak among the penalized ids.
      float* row = logits.row(static_cast<int64_t>(r));
      for (int64_t i = 0; i < vocabulary; ++i) row[i] *= r < 7 ? 1.0f : 4.0f;
      row[draw.output[50]] += 8;
      draws.push_back(std::move(draw));
    }
    const std::vector<SampledRow> got = sample(logits, draws);
    for (size_t r = 0; r < draws.size(); ++r) {
      const float* row = logits.row(static_cast<int64_t>(r));
      const std::vector<float> raw(row, row + vocabulary);
      const std::vector<float> after = penalized(raw, draws[r]);
      ASSERT_EQ(got[r].finite, 1);
      if (draws[r].params.temperature == 0) {
        const float best = *std::max_element(after.begin(), after.end());
        ASSERT_NEAR(after[static_cast<size_t>(got[r].token)], best, 1e-6 * std::abs(best));
      } else {
        expect_gumbel_argmax(got[r].token, after, draws[r]);
      }
      check_logprobs(got[r], raw, draws[r].params.num_logprobs);
      if (HasFatalFailure()) FAIL() << "row " << r << " of " << vocabulary;
    }
  }
}

TEST_P(SampleTest, GreedyTakesTheLowestOfTies) {
  std::vector<float> logits(1000, -1.0f);
  logits[700] = logits[31] = logits[999] = 2.5f;
  EXPECT_EQ(sample(logits, {.temperature = 0}).token, 31);
  std::vector<float> large(kTestVocabulary, -1.0f);
  large[128255] = large[70001] = large[100000] = 2.5f;
  EXPECT_EQ(sample(large, {.temperature = 0}).token, 70001);
}

TEST_P(SampleTest, TinyTemperatureIsGreedyAndHugeIsUniform) {
  std::vector<float> logits = {1, 5, 4.99f, -3};
  for (uint64_t i = 0; i < 100; ++i) {
    EXPECT_EQ(sample(logits, {.temperature = 1e-30f, .seed = i}).token, 1);
    EXPECT_EQ(sample(logits, {.temperature = 1e-42f, .seed = i}).token, 1);
  }
  expect_distribution(logits, {.temperature = 1e30f}, {0.25, 0.25, 0.25, 0.25});
}

TEST_P(SampleTest, LogprobsAreOfTheRawDistribution) {
  std::vector<float> logits(777);
  for (float& v : logits) v = 4 * random_.normal();
  logits[5] = logits[600] = 20;
  const SamplingParams params{.temperature = 0, .repetition_penalty = 2.0f, .num_logprobs = 5};
  const SampledRow r = sample(logits, Draw{params, 0, {5, 5}, {600}});
  EXPECT_NE(r.token, 5);
  check_logprobs(r, logits, 5);
  check_logprobs(sample(logits, {.num_logprobs = 0}), logits, 0);
  EXPECT_LT(sample(logits, {.num_logprobs = 0}).logprob, 0);
  EXPECT_EQ(sample(std::vector<float>{1, 2}, {.num_logprobs = 20}).num_top, 2);
  // Of equal ones the lowest ids.
  check_logprobs(sample(std::vector<float>(5000, 0.5f), {.num_logprobs = 20}),
      std::vector<float>(5000, 0.5f), 20);
}

TEST_P(SampleTest, Penalties) {
  const std::vector<float> logits = {3.0f, 2.9f, 2.0f, -1.0f, 2.5f};
  const auto greedy = [&](SamplingParams p, const std::vector<int32_t>& prompt,
                          const std::vector<int32_t>& output) {
    p.temperature = 0;
    return sample(logits, Draw{p, 0, prompt, output}).token;
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

TEST_P(SampleTest, BiasesMoveTheDrawAndNotTheLogprobs) {
  std::vector<float> logits(3000);
  for (float& v : logits) v = 2 * random_.normal();
  const auto favourite =
      static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  for (const SamplingParams& params : {SamplingParams{.temperature = 0, .num_logprobs = 3},
           SamplingParams{.num_logprobs = 0}, SamplingParams{.top_k = 5, .num_logprobs = 1},
           SamplingParams{.top_p = 0.5f, .repetition_penalty = 1.2f, .num_logprobs = 2}}) {
    const auto draw = [&](std::vector<TokenBias> biases, bool only = false) {
      SamplingParams p = params;
      p.only_listed = only;
      const SampledRow row = sample(logits, Draw{p, 3, {1, 2, 7}, {2999}, std::move(biases)});
      check_logprobs(row, logits, p.num_logprobs);
      return row.token;
    };
    EXPECT_EQ(draw({{7, 100}}), 7);
    EXPECT_EQ(draw({{2999, 100}}), 2999);
    EXPECT_NE(draw({{favourite, kForbidden}}), favourite);
    EXPECT_NE(draw({{favourite, -100}}), favourite);
    EXPECT_EQ(draw({{11, 0}}, true), 11);
    EXPECT_EQ(draw({{0, kForbidden}, {2998, -100}}, true), 2998);
    std::vector<TokenBias> all_but_one;  // as many as there may be
    for (int32_t i = 0; i < kMaxLogitBias; ++i) all_but_one.push_back({i, i == 500 ? 100.0f : 5});
    EXPECT_EQ(draw(all_but_one), 500);
    EXPECT_EQ(draw(all_but_one, true), 500);
  }
  // By a little, the draw is that of the logits with the bias in them.
  std::vector<float> moved = logits;
  const std::vector<TokenBias> little = {{3, 1.5f}, {favourite, -2}, {1700, 0.75f}};
  for (const TokenBias& entry : little) moved[static_cast<size_t>(entry.token)] += entry.bias;
  for (uint64_t position = 0; position < 40; ++position) {
    const Draw draw{{.temperature = 0.9f, .seed = 5}, position, {}, {}, little};
    expect_gumbel_argmax(sample(logits, draw).token, moved, draw);
  }
}

// A known id among rows that are drawn: nothing that bends the draw shows.
TEST_P(SampleTest, ScoresKnownIds) {
  constexpr int32_t kVocabulary = 49152;
  Matrix logits = random_.matrix(12, kVocabulary);
  for (float& v : logits.values) v *= 3;
  std::vector<Draw> draws;
  for (int32_t r = 0; r < 12; ++r) {
    Draw draw{{.temperature = r % 2 == 0 ? 0.0f : 0.8f,
                  .top_k = r % 3 == 0 ? 4 : 0,
                  .repetition_penalty = 1.5f,
                  .num_logprobs = 3,
                  .num_prompt_logprobs = r - 1},
        0, {1, 2}, {3}, {{5, 50}}};
    const auto id = static_cast<int32_t>(random_.below(kVocabulary));
    if (r != 7) draw.scored = r == 0 ? 0 : r == 1 ? kVocabulary - 1 : id;
    draws.push_back(std::move(draw));
  }
  const std::vector<SampledRow> got = sample(logits, draws);
  for (size_t r = 0; r < 12; ++r) {
    const float* row = logits.row(static_cast<int64_t>(r));
    const bool is_drawn = draws[r].scored < 0;
    ASSERT_TRUE(is_drawn || got[r].token == draws[r].scored) << "row " << r;
    check_logprobs(got[r], std::vector<float>(row, row + kVocabulary),
        is_drawn ? 3 : draws[r].params.num_prompt_logprobs);
    if (HasFatalFailure()) FAIL() << "row " << r;
  }
}

TEST_P(SampleTest, NonFiniteFailsThatRowAlone) {
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    for (const int64_t at : {0, 1, 20000, 32766, 32767}) {
      for (const float temperature : {0.0f, 1.0f}) {
        Matrix logits(3, 32768, 0.5f);
        logits.row(0)[7] = 50;
        logits.row(1)[at] = bad;
        logits.row(2)[9] = 50;
        const Draw draw{{.temperature = temperature, .num_logprobs = 2}, 0, {}, {}};
        const auto got = sample(logits, {draw, draw, draw});
        EXPECT_EQ(got[0].finite, 1);
        EXPECT_EQ(got[1].finite, 0) << bad << " at " << at;
        EXPECT_EQ(got[2].finite, 1);
        EXPECT_EQ(got[0].token, 7);
        EXPECT_EQ(got[2].token, 9);
      }
    }
  }
}

MILLRACE_ON_ALL_BACKENDS(SampleTest);

}  // namespace
}  // namespace millrace
