// How large a step is: as many tokens for every micro-batch, and no step longer than the others'
// time between tokens allows.
#include <algorithm>
#include <limits>

#include "scheduler/scheduler.h"

namespace millrace {

namespace {

// With several stages a prompt is cut so that its chunks fill them, but not below this: a smaller
// step costs as much, its weights have to be read all the same.
constexpr int32_t kMinChunk = 256;

}  // namespace

// Prompt tokens of a step that has `num_decodes` rows: its even share of all that could run now, so
// that every stage has as much to do at any time.
int32_t Scheduler::prefill_budget(int32_t num_decodes) const {
  const int32_t left = config_.max_num_batched_tokens - num_decodes;
  if (config_.pp == 1) return left;
  const int64_t runnable = prompt_backlog_ + size(Phase::kDecode);
  const int64_t share = (runnable + config_.pp - 1) / config_.pp - num_decodes;
  return static_cast<int32_t>(std::min<int64_t>(left, std::max<int64_t>(kMinChunk, share)));
}

// The longest that a step with prompt tokens may take.
double Scheduler::time_limit() const {
  const bool delays_decodes = size(Phase::kDecode) > 0;
  if (!model_ready() || (config_.pp == 1 && !delays_decodes)) {
    return std::numeric_limits<double>::infinity();
  }
  // Steps of one length keep the stages in step: that of a whole budget of a prompt's beginning.
  // Tokens further on take longer, so chunks shrink as the context grows.
  StepWork whole;
  whole.add_prefill(0, config_.max_num_batched_tokens);
  const double longest = step_seconds(whole);
  if (!delays_decodes || config_.max_stretch <= 0) return longest;
  return std::min(longest, config_.max_stretch * step_seconds(last_decodes_));
}

// How many of `count` prompt tokens from position `first` on the step takes within the limit.
int32_t Scheduler::fit_chunk(
    const StepWork& work, int64_t first, int32_t count, double limit) const {
  const auto fits = [&](int32_t tokens) {
    StepWork more = work;
    more.add_prefill(first, tokens);
    return step_seconds(more) <= limit;
  };
  if (fits(count)) return count;
  // A prompt always moves on, by a block if by no more.
  int32_t low = work.prefill_tokens == 0 ? std::min(count, config_.block_size) : 0;
  int32_t high = count;
  while (high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    (fits(middle) ? low : high) = middle;
  }
  return low == count ? low : low - low % config_.block_size;
}

bool Scheduler::model_ready() const {
  return std::all_of(
      models_.begin(), models_.end(), [](const StepModel& model) { return model.ready(); });
}

double Scheduler::step_seconds(const StepWork& work) const {
  double longest = 0;
  for (const StepModel& model : models_) longest = std::max(longest, model.seconds(work));
  return longest;
}

void Scheduler::observe(const StepResult& result) {
  CHECK(result.stage < models_.size(), "a result of stage {}", result.stage);
  const Issued& issued = issued_[result.sequence % issued_.size()];
  if (issued.number != result.sequence) return;  // long ago
  models_[result.stage].observe(issued.work, 1e-6 * (result.compute_us + result.comm_us));
}

double Scheduler::lane_spread() const {
  if (next_plan_ < static_cast<uint64_t>(num_lanes())) return 0;
  double shortest = std::numeric_limits<double>::infinity();
  double longest = 0;
  for (uint64_t n = next_plan_ - static_cast<uint64_t>(num_lanes()); n < next_plan_; ++n) {
    const StepWork& work = issued_[n % issued_.size()].work;
    const double size = work.tokens() == 0 || !model_ready() ? work.tokens() : step_seconds(work);
    shortest = std::min(shortest, size);
    longest = std::max(longest, size);
  }
  return longest > 0 ? (longest - shortest) / longest : 0;
}

}  // namespace millrace
