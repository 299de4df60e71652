// A scheduler driven by hand: plans as short text, results with chosen tokens.
//
// A plan reads "-3 0:16+1^ 1:1*": slot 3 released, slot 0 gets 16 tokens and one new block and
// their next ids are scored, slot 1 gets one token and samples. "(empty)" is a plan without rows,
// "none" is no plan.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <deque>
#include <string>
#include <vector>

#include "scheduler/scheduler.h"

namespace millrace {

inline Request make_request(int prompt, int max_tokens, std::vector<int32_t> stops = {}) {
  Request request;
  static int32_t next = 100;
  request.prompt.assign(static_cast<size_t>(prompt), 7);
  request.prompt[0] = next++;  // no two have a prefix in common
  request.max_tokens = max_tokens;
  request.stop_token_ids = std::move(stops);
  return request;
}

inline std::string show(const StepPlan& plan) {
  std::string text;
  for (const uint16_t slot : plan.releases) text += fmt::format("-{} ", slot);
  for (const Row& row : plan.rows) {
    text += fmt::format("{}:{}", row.slot, row.count);
    if (!row.new_blocks.empty()) text += fmt::format("+{}", row.new_blocks.size());
    text += scores(row.output) ? "^" : "";
    text += samples(row.output) ? "* " : " ";
  }
  if (plan.rows.empty()) text += "(empty) ";
  text.pop_back();
  return text;
}

class Harness {
 public:
  explicit Harness(const SchedulerConfig& config) : scheduler(config) {}

  std::string plan() {
    std::vector<Emission> failed;
    const auto plan = scheduler.plan(failed);
    EXPECT_TRUE(failed.empty());
    check();
    if (!plan) return "none";
    in_flight_.push_back(*plan);
    return show(*plan);
  }

  // Commits the oldest plan; every row samples `token`, and scores ids of the plan's number.
  std::vector<Emission> commit(int32_t token = 1, RowStatus status = RowStatus::kOk) {
    const StepPlan plan = in_flight_.front();
    in_flight_.pop_front();
    StepResult result;
    result.sequence = plan.sequence;
    for (const Row& row : plan.rows) {
      if (row.output == Output::kNone) continue;
      RowResult& out = result.rows.emplace_back();
      out.slot = row.slot;
      out.status = status;
      if (status != RowStatus::kOk) continue;
      out.tokens.assign(row.num_sampled(), {token, 0, {}});
      out.scored.assign(row.num_scored(), {static_cast<int32_t>(plan.sequence), 0, {}});
    }
    auto emissions = scheduler.commit(result);
    check();
    return emissions;
  }

  void check() { ASSERT_EQ(scheduler.check_integrity(), ""); }

  Scheduler scheduler;

 private:
  std::deque<StepPlan> in_flight_;
};

}  // namespace millrace
