// How large a step is: as many tokens for every micro-batch, and no step longer than the others'
// time between tokens allows.
#include <algorithm>
#include <limits>

#include "scheduler/scheduler.h"

namespace millrace {

namespace {

// A backlog of prompts is spread over so many rounds of the stages that consecutive steps differ
// little, ...
constexpr double kRounds = 4;
// ... and a step follows a change of the backlog by this share.
constexpr double kFollow = 0.3;
// Prompt tokens below which a step costs as much: its weights have to be read all the same.
constexpr int32_t kMinChunk = 256;
constexpr int32_t kMinTokens = 128;  // the same with the decode rows beside them, ...
constexpr int32_t kMinBeside = 32;   // ... but no fewer
// Rows that a GPU's products take at once: where they are bound by arithmetic, the first row of a
// tile costs as much as all. (8B on an H100: steps of 336, 352 and 544 rows took 21, 20.5 and 21
// ms, of 320, 384 and 512 18, 19 and 17.5.) With fewer rows they wait for weights anyway.
constexpr int32_t kTileRows = 64, kTiledFrom = 256;

// `count` prompt tokens beside `others`, without those of a tile that is not full, unless fewer
// than `least` were left.
int32_t in_whole_tiles(int32_t others, int32_t count, int32_t least) {
  const int32_t over = (others + count) % kTileRows;
  return others + count > kTiledFrom && count - over >= least ? count - over : count;
}

}  // namespace

// Prompt tokens that memory and slots let run now.
int64_t Scheduler::runnable_prompt_tokens() const {
  int64_t under_way = 0;
  for (const Sequence* sequence : list(Phase::kPrefill)) under_way += sequence->prompt_left();
  const auto waiting = int64_t{size(Phase::kWaiting)};
  if (waiting == 0) return under_way;
  const auto slots = std::min(waiting, static_cast<int64_t>(free_slots_.size()));
  const int64_t by_slots = (prompt_backlog_ - under_way) * slots / waiting;
  const int64_t by_memory = std::max<int64_t>(0, blocks_to_admit()) * config_.block_size;
  return under_way + std::min(by_slots, by_memory);
}

// Prompt tokens of a step that has `num_decodes` rows. With several stages steps are to be of one
// size: where they differ, stages wait for one another.
int32_t Scheduler::prefill_budget(int32_t num_decodes) {
  const int32_t left = config_.max_num_batched_tokens - num_decodes;
  if (config_.pp == 1 || config_.balance == Balance::kFirstCome) return left;
  const double share = static_cast<double>(runnable_prompt_tokens()) / (kRounds * config_.pp);
  // Without decode rows nothing is as large as the step before anyway.
  prompt_share_ += (num_decodes == 0 ? 1 : kFollow) * (share - prompt_share_);
  const int32_t least =
      num_decodes == 0 ? kMinChunk : std::max(kMinBeside, kMinTokens - num_decodes);
  const int32_t wanted = std::min(left, std::max(least, static_cast<int32_t>(prompt_share_)));
  return in_whole_tiles(num_decodes, wanted, std::min(left, least));
}

// The longest that a step with prompt tokens may take.
double Scheduler::time_limit() const {
  const bool delays_decodes = size(Phase::kDecode) > 0;
  if (!model_ready() || (config_.pp == 1 && !delays_decodes)) {
    return std::numeric_limits<double>::infinity();
  }
  // That of a whole budget of a prompt's beginning. Tokens further on take longer, so chunks shrink
  // as the context grows.
  StepWork whole;
  whole.add_prefill(0, config_.max_num_batched_tokens);
  const double longest = step_seconds(whole);
  // Where as many wait for a first token as for the next one, none is served by holding back.
  const bool protects = size(Phase::kPrefill) + size(Phase::kWaiting) < size(Phase::kDecode);
  if (!protects || config_.max_stretch <= 0) return longest;
  // What a step costs for having prompts at all would leave them nothing of a small stretch: they
  // get as much again.
  StepWork mixed = last_decodes_;
  mixed.add_prefill(0, 1);
  const double decodes = step_seconds(last_decodes_);
  return std::min(
      longest, std::max(config_.max_stretch * decodes, 2 * step_seconds(mixed) - decodes));
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
  if (low == count) return low;
  return in_whole_tiles(work.tokens(), low - low % config_.block_size, config_.block_size);
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
  if (config_.balance != Balance::kTime) return;
  models_[result.stage].observe(issued.work, 1e-6 * (result.compute_us + result.comm_us));
}

double Scheduler::newest_spread() const {
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
