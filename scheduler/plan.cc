// plan(): decode rows first, then prefill chunks in order of arrival, then admissions while slots,
// memory and budget last.
#include <algorithm>
#include <utility>

#include "scheduler/scheduler.h"

namespace millrace {

namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

std::optional<StepPlan> Scheduler::plan(std::vector<Emission>& failed) {
  if (static_cast<int32_t>(flights_.size()) >= num_lanes()) return std::nullopt;
  StepPlan plan;
  plan.sequence = next_plan_;
  InFlight record;
  record.number = next_plan_;
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
  const auto& decoding = list(Phase::kDecode);
  const int64_t share = std::min<int64_t>(
      divide_up(size(Phase::kDecode), config_.pp), config_.max_num_batched_tokens);
  for (int64_t i = 0; i < share && decode_due(*decoding.front()); ++i) {
    add_row(*decoding.front(), 1, plan, record);
  }
  if (record.work.decode_rows > 0) last_decodes_ = record.work;
}

bool Scheduler::fits(const Sequence& sequence) const {
  return !free_slots_.empty() && reserved_blocks_ + sequence.reserved <= pool_.num_blocks();
}

void Scheduler::plan_prefills(StepPlan& plan, InFlight& record) {
  int32_t budget = prefill_budget(record.work.decode_rows);
  const double limit = time_limit();
  // The first chunk that is cut short is the last.
  const auto next_chunk = [&](const Sequence& sequence) {
    const int32_t most = std::min({sequence.prompt_left(), budget, kMaxRowTokens});
    const int32_t count = fit_chunk(record.work, sequence.num_computed, most, limit);
    budget = count < most ? 0 : budget - count;
    return count;
  };
  // add_row moves a sequence on once its prompt is through, so the next one is looked up before.
  const auto& prefill = list(Phase::kPrefill);
  for (auto at = prefill.begin(); at != prefill.end() && budget > 0;) {
    Sequence& sequence = **at++;
    const int32_t count = next_chunk(sequence);
    if (count > 0) add_row(sequence, count, plan, record);
  }
  const auto& waiting = list(Phase::kWaiting);
  while (budget > 0 && !waiting.empty() && fits(*waiting.front())) {
    Sequence& sequence = *waiting.front();
    const int32_t count = next_chunk(sequence);
    if (count == 0) break;
    admit(sequence, plan);
    add_row(sequence, count, plan, record);
  }
}

void Scheduler::admit(Sequence& sequence, StepPlan& plan) {
  sequence.slot = free_slots_.back();
  free_slots_.pop_back();
  reserved_blocks_ += sequence.reserved;
  sequence.blocks.reserve(sequence.reserved);
  move(sequence, Phase::kPrefill);
  Admission& admission = plan.admissions.emplace_back();
  admission.slot = sequence.slot;
  admission.num_prompt = static_cast<uint32_t>(sequence.num_prompt());
  admission.sampling = sequence.request.sampling;
  admission.token_ids = sequence.request.prompt;
}

void Scheduler::add_row(Sequence& sequence, int32_t count, StepPlan& plan, InFlight& record) {
  Row& row = plan.rows.emplace_back();
  row.slot = sequence.slot;
  row.count = static_cast<uint16_t>(count);
  if (sequence.phase == Phase::kDecode) {
    record.work.add_decode(sequence.num_computed);
  } else {
    record.work.add_prefill(sequence.num_computed, count);
  }
  prompt_backlog_ -= std::clamp(sequence.prompt_left(), 0, count);
  sequence.num_computed += count;
  while (
      static_cast<int64_t>(sequence.blocks.size()) * config_.block_size < sequence.num_computed) {
    sequence.blocks.push_back(pool_.allocate());
    row.new_blocks.push_back(sequence.blocks.back().id());
  }
  ++sequence.in_flight;
  const bool output = sequence.prompt_left() <= 0;
  if (output) {
    row.output = Output::kLast;
    sequence.last_plan = next_plan_;
    const bool done = sequence.num_computed == sequence.num_positions();
    move(sequence, done ? Phase::kPlanned : Phase::kDecode);
  }
  record.rows.push_back({&sequence, count, output});
}

// Unreachable while admission counts reservations alone; it is what keeps the engine moving
// whatever an admission rule may come to depend on.
void Scheduler::fail_oldest(std::vector<Emission>& failed) {
  Sequence& oldest = *list(Phase::kWaiting).front();
  failed.push_back({.id = oldest.id,
      .finish = FinishReason::kError,
      .status = {
          ErrorCode::kInternal, "the request cannot be scheduled though nothing else runs", ""}});
  retire(oldest);
}

}  // namespace millrace
