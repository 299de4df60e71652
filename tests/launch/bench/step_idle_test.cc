#include "launch/bench/step_idle.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

// A step whose layers run from `ready` to `end`.
StepTrace step(uint32_t rows, uint32_t tokens, int64_t ready, int64_t end) {
  StepTrace trace;
  trace.rows = rows;
  trace.tokens = tokens;
  trace.ready = trace.forward = ready;
  trace.end = end;
  return trace;
}

TEST(StepIdle, CountsGapsBetweenDecodeStepsAlone) {
  StepIdle idle;
  idle.add(0, step(2, 64, 0, 1000));    // a prompt
  idle.add(0, step(2, 2, 5000, 5100));  // the first decode step: what was before is no decode
  EXPECT_EQ(idle.fraction(), 0);
  idle.add(0, step(2, 2, 5110, 5200));  // 10 of 100
  idle.add(0, step(0, 0, 5200, 5200));  // only keeps a pipeline in step
  idle.add(0, step(2, 2, 5230, 5300));  // 30 of 100
  EXPECT_DOUBLE_EQ(idle.fraction(), 40.0 / 200);
  idle.add(0, step(3, 40, 6000, 7000));  // a prompt came
  idle.add(0, step(3, 3, 9000, 9100));
  EXPECT_DOUBLE_EQ(idle.fraction(), 40.0 / 200);
}

TEST(StepIdle, RanksHaveTheirOwnOrderAndAResetKeepsIt) {
  StepIdle idle;
  idle.add(0, step(1, 1, 0, 100));
  idle.add(1, step(1, 1, 100, 200));
  idle.add(0, step(1, 1, 200, 300));  // 100 of 200
  idle.add(1, step(1, 1, 300, 400));  // 100 of 200
  EXPECT_DOUBLE_EQ(idle.fraction(), 0.5);
  idle.reset();
  EXPECT_EQ(idle.fraction(), 0);
  idle.add(1, step(1, 1, 425, 500));
  EXPECT_DOUBLE_EQ(idle.fraction(), 0.25);
}

}  // namespace
}  // namespace millrace
