#include "launch/bench/workload.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace millrace {
namespace {

TEST(Workload, EvenLengthsReachBothEndsAndNotBeyond) {
  const auto arrivals = draw_even_lengths(100, 7, 0.5, 5000, /*seed=*/3);
  const auto [low, high] = std::ranges::minmax(arrivals, {}, &Arrival::prompt_tokens);
  EXPECT_EQ(low.prompt_tokens, 50);
  EXPECT_EQ(high.prompt_tokens, 150);
  const auto [least, most] = std::ranges::minmax(arrivals, {}, &Arrival::output_tokens);
  EXPECT_EQ(least.output_tokens, 3);  // of 3.5
  EXPECT_EQ(most.output_tokens, 11);  // of 10.5
}

TEST(Workload, EvenLengthsOfNoRatioAreAlikeAndOfAllStartAtOne) {
  for (const Arrival& arrival : draw_even_lengths(1024, 128, 0, 100, 1)) {
    EXPECT_EQ(arrival.prompt_tokens, 1024);
    EXPECT_EQ(arrival.output_tokens, 128);
  }
  const auto arrivals = draw_even_lengths(4, 4, 1, 1000, 1);
  EXPECT_EQ(std::ranges::min(arrivals, {}, &Arrival::prompt_tokens).prompt_tokens, 1);
}

// The mean gap is 1 / rate whatever the burstiness, the variance that over the burstiness.
TEST(Workload, GapsHaveTheirMeanAndSpread) {
  constexpr double kRate = 4;
  for (const double burstiness : {0.25, 1.0, 1.0000001, 9.0}) {
    std::vector<Arrival> arrivals(40'000);
    draw_times(arrivals, kRate, /*seed=*/5, burstiness);
    double before = 0, sum = 0, squares = 0;
    for (const Arrival& arrival : arrivals) {
      const double gap = (arrival.at_s - before) * kRate;
      EXPECT_GE(gap, 0);
      before = arrival.at_s;
      sum += gap;
      squares += gap * gap;
    }
    const auto count = static_cast<double>(arrivals.size());
    const double mean = sum / count;
    EXPECT_NEAR(mean, 1, 0.05) << burstiness;
    EXPECT_NEAR((squares / count - mean * mean) * burstiness, 1, 0.1) << burstiness;
  }
}

}  // namespace
}  // namespace millrace
