// How steps are sized: by time once steps were measured, and evenly over the lanes.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <vector>

#include "scheduler/scheduler.h"

namespace millrace {
namespace {

// What the device under test takes for a step, in microseconds.
double device_us(const StepWork& work) {
  return work.tokens() == 0 ? 0
                            : 200 + std::max(4000.0, work.tokens() * 16.0) +
                                  static_cast<double>(work.context) * 0.04 +
                                  static_cast<double>(work.pairs) * 0.002;
}

// Keeps every lane full; the oldest plan is committed with the device's time on every stage.
class Bench {
 public:
  explicit Bench(const SchedulerConfig& config) : config_(config), scheduler_(config) {}

  void add(RequestId id, int prompt, int max_tokens) {
    Request request;
    request.prompt.assign(static_cast<size_t>(prompt), static_cast<int32_t>(id));
    request.max_tokens = max_tokens;
    ASSERT_TRUE(scheduler_.add(id, std::move(request)).ok());
  }
  struct Step {
    StepWork work;
    double us;
  };
  // The oldest plan after all that can be planned is.
  Step step() {
    std::vector<Emission> failed;
    while (auto plan = scheduler_.plan(failed)) issue(std::move(*plan));
    EXPECT_EQ(scheduler_.check_integrity(), "");
    const auto [plan, work] = std::move(flights_.front());
    flights_.pop_front();
    StepResult result;
    result.sequence = plan.sequence;
    result.compute_us = static_cast<uint32_t>(device_us(work));
    for (int stage = 0; stage < config_.pp; ++stage) {
      result.stage = static_cast<uint16_t>(stage);
      scheduler_.observe(result);
    }
    for (const Row& row : plan.rows) {
      if (row.output == Output::kLast)
        result.rows.push_back({row.slot, RowStatus::kOk, {{1, 0, {}}}});
    }
    scheduler_.commit(result);
    return {work, device_us(work)};
  }
  // Teaches the model with prompts of many lengths.
  void learn() {
    for (int i = 0; i < 60; ++i) {
      add(10'000 + static_cast<RequestId>(i), 16 + i * 97 % 3000, 1 + i % 7);
      step();
    }
    while (!scheduler_.idle()) step();
  }
  SchedulerStats stats() const { return scheduler_.stats(); }

 private:
  void issue(StepPlan plan) {
    StepWork work;
    positions_.resize(static_cast<size_t>(config_.max_num_seqs));
    for (const Admission& admission : plan.admissions) {
      positions_[admission.slot] = admission.num_computed;
      prompts_[admission.slot] = static_cast<int64_t>(admission.token_ids.size());
    }
    for (const Row& row : plan.rows) {
      int64_t& at = positions_[row.slot];
      if (at >= prompts_[row.slot]) {
        work.add_decode(at);
      } else {
        work.add_prefill(at, row.count);
      }
      at += row.count;
    }
    flights_.push_back({std::move(plan), work});
  }

  SchedulerConfig config_;
  Scheduler scheduler_;
  std::deque<std::pair<StepPlan, StepWork>> flights_;
  std::vector<int64_t> positions_;  // per slot
  std::vector<int64_t> prompts_ = std::vector<int64_t>(256);
};

SchedulerConfig make_config(int pp, double max_stretch) {
  SchedulerConfig config;
  config.pp = pp;
  config.num_blocks = 32768;
  config.max_num_seqs = 128;
  config.max_stretch = max_stretch;
  return config;
}

// Steps while 64 sequences decode and a prompt of 16k comes in.
std::vector<double> decode_beside_a_long_prompt(double max_stretch, double* undisturbed) {
  Bench bench(make_config(1, max_stretch));
  bench.learn();
  for (RequestId id = 0; id < 64; ++id) bench.add(id, 500, 2000);
  for (int rows = 0; rows < 64;) {
    const auto [work, us] = bench.step();
    rows = work.prefill_tokens > 0 ? 0 : work.decode_rows;
    *undisturbed = us;
  }
  bench.add(100, 16'000, 1);
  std::vector<double> times;
  for (int done = 0; done < 16'000;) {
    const auto [work, us] = bench.step();
    EXPECT_GE(work.decode_rows, 64);
    done += work.prefill_tokens;
    if (work.prefill_tokens > 0) times.push_back(us);
  }
  return times;
}

TEST(Balance, ALongPromptStretchesTheOthersByTheSetFactor) {
  for (const double stretch : {1.3, 2.0}) {
    double undisturbed = 0;
    const auto times = decode_beside_a_long_prompt(stretch, &undisturbed);
    EXPECT_LE(*std::ranges::max_element(times), stretch * undisturbed * 1.1) << stretch;
    // The time allowed is used, but for the first step, planned ahead, and the last.
    EXPECT_GE(*std::min_element(times.begin() + 1, times.end() - 1), stretch * undisturbed * 0.8);
  }
  double undisturbed = 0;
  const auto times = decode_beside_a_long_prompt(0, &undisturbed);
  EXPECT_GT(*std::ranges::max_element(times), 4 * undisturbed);
}

TEST(Balance, ChunksShrinkAsTheContextGrows) {
  Bench bench(make_config(4, 0));
  bench.learn();
  bench.add(1, 32'000, 1);
  std::vector<double> times;
  std::vector<int32_t> chunks;
  for (int done = 0; done < 32'000; done += chunks.back()) {
    const auto [work, us] = bench.step();
    times.push_back(us);
    chunks.push_back(work.prefill_tokens);
  }
  // A sixteenth of the rest: the stages behind wait for the first chunk, and drain at the last.
  EXPECT_EQ(chunks.front(), 31 * 64);  // of 2,000 in whole tiles of rows
  EXPECT_LE(chunks[chunks.size() - 2], 256);
  // No step is much longer than the one before: no stage waits long for another.
  for (size_t i = 1; i + 1 < times.size(); ++i) EXPECT_LT(times[i], 1.1 * times[i - 1]) << i;
  EXPECT_LT(bench.stats().model_error, 0.1);
}

TEST(Balance, EveryLaneHasItsShareOfDecodesAndPrompts) {
  Bench bench(make_config(4, 2));
  bench.learn();
  for (RequestId id = 0; id < 101; ++id) bench.add(id, 200, 400);
  for (int i = 0; i < 150; ++i) bench.step();
  for (int i = 0; i < 40; ++i) {
    const int32_t rows = bench.step().work.decode_rows;
    EXPECT_GE(rows, 23);
    EXPECT_LE(rows, 26);
  }
  EXPECT_LT(bench.stats().lane_spread, 0.1);
}

}  // namespace
}  // namespace millrace
