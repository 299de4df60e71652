#include "scheduler/step_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

namespace millrace {
namespace {

// A device: weights are read in 4 ms or 20 us a token of arithmetic, then attention.
double device_seconds(const StepWork& work) {
  return 3e-4 + std::max(4e-3, work.tokens() * 2e-5) + static_cast<double>(work.context) * 4e-8 +
         static_cast<double>(work.pairs) * 2.5e-9;
}

class StepModelTest : public testing::Test {
 protected:
  int64_t draw(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random_() % static_cast<uint64_t>(high - low + 1));
  }
  StepWork make_work() {
    StepWork work;
    for (int64_t rows = draw(0, 128); rows > 0; --rows) work.add_decode(draw(10, 4000));
    if (draw(0, 1) == 0 || work.decode_rows == 0) work.add_prefill(draw(0, 16000), draw(1, 2048));
    return work;
  }
  double mean_error(int count) {
    double sum = 0;
    for (int i = 0; i < count; ++i) {
      const StepWork work = make_work();
      sum += std::abs(model_.seconds(work) / device_seconds(work) - 1);
    }
    return sum / count;
  }
  std::mt19937_64 random_{1};
  StepModel model_;
};

TEST(StepWork, CountsKeys) {
  StepWork work;
  work.add_decode(99);
  work.add_decode(0);
  EXPECT_EQ(work.context, 101);
  work.add_prefill(0, 4);  // 1 + 2 + 3 + 4
  EXPECT_EQ(work.pairs, 10);
  work.add_prefill(10, 2);  // 11 + 12
  EXPECT_EQ(work.pairs, 33);
  EXPECT_EQ(work.tokens(), 8);
}

TEST_F(StepModelTest, LearnsADeviceDespiteNoiseAndOutliers) {
  EXPECT_EQ(model_.seconds(make_work()), 0);
  EXPECT_FALSE(model_.ready());
  for (int i = 0; i < 1500; ++i) {
    const StepWork work = make_work();
    const double noise = 1 + 0.02 * static_cast<double>(draw(-10, 10)) / 10;
    const double stall = draw(0, 49) == 0 ? 20 : 1;
    model_.observe(work, device_seconds(work) * noise * stall);
  }
  EXPECT_TRUE(model_.ready());
  EXPECT_LT(mean_error(500), 0.06);
  EXPECT_LT(model_.error(), 0.15);  // stalls count here
}

TEST_F(StepModelTest, FollowsADeviceThatGetsSlower) {
  for (int i = 0; i < 600; ++i) {
    const StepWork work = make_work();
    model_.observe(work, device_seconds(work) / 2);
  }
  EXPECT_GT(mean_error(300), 0.4);
  for (int i = 0; i < 1500; ++i) {
    const StepWork work = make_work();
    model_.observe(work, device_seconds(work));
  }
  EXPECT_LT(mean_error(300), 0.06);
  EXPECT_LT(model_.error(), 0.06);
}

TEST_F(StepModelTest, NeverFallsWithMoreWorkAndIgnoresNothing) {
  for (int i = 0; i < 200; ++i) model_.observe(make_work(), 1e-3 * static_cast<double>(draw(1, 9)));
  const StepModel before = model_;
  model_.observe(StepWork(), 1);
  model_.observe(make_work(), 0);
  for (int i = 0; i < 200; ++i) {
    StepWork work = make_work();
    const double less = model_.seconds(work);
    EXPECT_EQ(less, before.seconds(work));
    work.add_prefill(draw(0, 1000), draw(1, 1000));
    EXPECT_GE(model_.seconds(work), less);
    EXPECT_GE(less, 0);
  }
}

}  // namespace
}  // namespace millrace
