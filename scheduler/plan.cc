// plan(): decode rows first, then prefill chunks by rank, then admissions while slots, memory and
// budget last.
#include <algorithm>
#include <utility>

#include "scheduler/scheduler.h"

namespace millrace {

namespace {

constexpr double kSpreadMemory = 0.02;  // what a plan adds to the running mean

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

std::optional<StepPlan> Scheduler::plan(std::vector<Emission>& failed) {
  if (static_cast<int32_t>(flights_.size()) >= num_lanes()) return std::nullopt;
  StepPlan plan;
  plan.sequence = next_plan_;
  InFlight record;
  record.number = next_plan_;
  make_way();
  plan_decodes(plan, record);
  plan_prefills(plan, record);
  if (plan.rows.empty() && !filler_due()) {
    if (flights_.empty() && size(Phase::kWaiting) > 0) fail_oldest(failed);
    return std::nullopt;
  }
  ++next_plan_;
  plan.releases = std::exchange(pending_releases_, {});
  const std::string wrong = table_.apply(plan);
  CHECK(wrong.empty(), "{}", wrong);
  plan.slot_hash = table_.hash();
  issued_[record.number % issued_.size()] = {record.number, record.work};
  flights_.push_back(std::move(record));
  lane_spread_ += kSpreadMemory * (newest_spread() - lane_spread_);
  return plan;
}

// A decode row's input is sampled in its last plan and reaches the first stage before plan
// last + pp, not sooner.
bool Scheduler::decode_due(const Sequence& sequence) const {
  return next_plan_ >= sequence.last_plan + static_cast<uint64_t>(config_.pp);
}

// Decoding sequences too few for the stages need plans without rows between theirs. These take
// lanes, so they are held back while a long (prefill) step is out: who arrives meanwhile needs one.
bool Scheduler::filler_due() const {
  if (list(Phase::kDecode).empty()) return false;
  return std::none_of(flights_.begin(), flights_.end(),
      [](const InFlight& flight) { return flight.work.prefill_tokens > 0; });
}

void Scheduler::plan_decodes(StepPlan& plan, InFlight& record) {
  // An even share of the decoding sequences, so that every stage has some at any time.
  int64_t share = std::min<int64_t>(
      divide_up(size(Phase::kDecode), config_.pp), config_.max_num_batched_tokens);
  // Who finds no block is passed over, and may be preempted by one that comes after it.
  std::vector<Sequence*> due;
  for (Sequence* sequence : list(Phase::kDecode)) {
    if (!decode_due(*sequence)) break;
    due.push_back(sequence);
  }
  for (Sequence* sequence : due) {
    if (share == 0) break;
    if (sequence->phase != Phase::kDecode || secure_blocks(*sequence, 1) == 0) continue;
    add_row(*sequence, 1, plan, record);
    --share;
  }
  if (record.work.decode_rows > 0) last_decodes_ = record.work;
}

// Tokens of the next chunk; the first that is cut short leaves no budget for others.
int32_t Scheduler::chunk_of(
    int32_t first, int32_t left, double limit, const InFlight& record, int32_t& budget) const {
  const int32_t most = std::min({left, budget, kMaxRowTokens});
  const int32_t count = fit_chunk(record.work, first, most, limit);
  budget = count < most ? 0 : budget - count;
  return count;
}

void Scheduler::plan_prefills(StepPlan& plan, InFlight& record) {
  int32_t budget = prefill_budget(record.work.decode_rows);
  const double limit = time_limit();
  const std::vector<Sequence*> prefill(list(Phase::kPrefill).begin(), list(Phase::kPrefill).end());
  for (Sequence* sequence : prefill) {
    if (budget <= 0) return;
    if (sequence->phase != Phase::kPrefill) continue;  // preempted by one before it
    const int32_t first = sequence->num_computed;
    int32_t count = chunk_of(first, sequence->row_left(first), limit, record, budget);
    count = secure_blocks(*sequence, count);
    if (count > 0) add_row(*sequence, count, plan, record);
  }
  plan_admissions(budget, limit, plan, record);
}

// Nobody overtakes the head of the queue.
void Scheduler::plan_admissions(int32_t budget, double limit, StepPlan& plan, InFlight& record) {
  const auto& waiting = list(Phase::kWaiting);
  // Ids go to the ranks with their admission, those of cached blocks too, and biases, of two words:
  // a plan has room for a budget of them and one sequence more.
  int64_t num_ids = 0;
  while (budget > 0 && num_ids < config_.max_num_batched_tokens && !waiting.empty() &&
         !free_slots_.empty()) {
    Sequence& head = *waiting.front();
    const bool alone = list(Phase::kPrefill).empty() && list(Phase::kDecode).empty();
    if (!alone && blocked_ == std::pair(head.id, std::max(blocked_.second, blocks_to_admit()))) {
      return;
    }
    const Prefix prefix = find_prefix(head);
    // Who shares what this plan computes waits for the next one.
    if (prefix.computing || !fits(head, prefix)) return;
    const auto first = static_cast<int32_t>(prefix.blocks.size()) * config_.block_size;
    const int32_t count = chunk_of(first, head.row_left(first), limit, record, budget);
    if (count == 0) return;
    admit(head, prefix, plan);
    num_ids += head.num_known() + 2 * std::ssize(head.request.logit_bias);
    add_row(head, count, plan, record);
  }
}

void Scheduler::add_row(Sequence& sequence, int32_t count, StepPlan& plan, InFlight& record) {
  Row& row = plan.rows.emplace_back();
  row.slot = sequence.slot;
  row.count = static_cast<uint16_t>(count);
  if (sequence.phase == Phase::kDecode) {
    record.work.add_decode(sequence.num_computed);
  } else {
    record.work.add_prefill(sequence.num_computed, count);
    prompt_backlog_ -= count;
  }
  const int scored = sequence.num_computed >= sequence.unscored ? 2 : 0;
  sequence.num_computed += count;
  if (scored != 0) {
    const bool all = sequence.num_computed + 1 >= sequence.num_prompt;
    sequence.unscored = all ? Sequence::kNothing : sequence.num_computed;
  }
  const auto num_blocks = static_cast<size_t>(blocks_for(sequence.num_computed));
  while (sequence.blocks.size() < num_blocks) sequence.blocks.push_back(pool_.allocate());
  for (; sequence.num_told < num_blocks; ++sequence.num_told) {
    row.new_blocks.push_back(sequence.blocks[sequence.num_told].id());
  }
  publish(sequence, next_plan_);
  ++sequence.in_flight;
  sequence.last_row = next_plan_;
  const int sampled = sequence.prompt_left() <= 0 ? 1 : 0;
  row.output = static_cast<Output>(scored | sampled);
  if (sampled != 0) {
    sequence.last_plan = next_plan_;
    const bool done = sequence.num_computed == sequence.num_positions();
    move(sequence, done ? Phase::kPlanned : Phase::kDecode);
  }
  record.rows.push_back({&sequence, count, row.output});
}

// Unreachable: every request fits an empty pool, and the first by rank can take blocks from all
// others. It is what keeps the engine moving whatever an admission rule may come to depend on.
void Scheduler::fail_oldest(std::vector<Emission>& failed) {
  Sequence& oldest = *list(Phase::kWaiting).front();
  failed.push_back({.id = oldest.id,
      .finish = FinishReason::kError,
      .status = {
          ErrorCode::kInternal, "the request cannot be scheduled though nothing else runs", ""}});
  retire(oldest);
}

}  // namespace millrace
