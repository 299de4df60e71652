// check_integrity(): recounts everything that plan and commit keep by differences. For tests and
// for an idle engine; its cost is that of all state.
#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <set>
#include <unordered_map>

#include "scheduler/scheduler.h"

namespace millrace {

std::string Scheduler::check_integrity() const {
  for (const auto check : {&Scheduler::check_sequences, &Scheduler::check_flights,
           &Scheduler::check_memory, &Scheduler::check_slots}) {
    if (std::string broken = (this->*check)(); !broken.empty()) return broken;
  }
  return "";
}

std::string Scheduler::check_sequences() const {
  size_t listed = 0;
  for (int i = 0; i < kNumPhases; ++i) {
    const auto phase = static_cast<Phase>(i);
    listed += list(phase).size();
    uint64_t last_plan = 0;
    for (const Sequence* sequence : list(phase)) {
      const auto known = sequences_.find(sequence->id);
      if (known == sequences_.end() || &known->second != sequence || sequence->phase != phase ||
          *sequence->place != sequence) {
        return fmt::format("request {} stands in the list of phase {}", sequence->id, i);
      }
      if (phase == Phase::kDecode && sequence->last_plan < last_plan) {
        return fmt::format("request {} decodes out of turn", sequence->id);
      }
      last_plan = sequence->last_plan;
      const bool ranked = phase == Phase::kWaiting || phase == Phase::kPrefill;
      const auto next = std::next(sequence->place);
      if (ranked && next != list(phase).end() && !sequence->goes_before(**next)) {
        return fmt::format("request {} stands before its rank", sequence->id);
      }
    }
  }
  if (listed != sequences_.size()) {
    return fmt::format("{} requests known, {} listed", sequences_.size(), listed);
  }
  int64_t backlog = 0;
  for (const auto& [id, sequence] : sequences_) {
    if (std::string broken = check_sequence(sequence); !broken.empty()) {
      return fmt::format("request {}: {}", id, broken);
    }
    const bool counts = sequence.phase == Phase::kWaiting || sequence.phase == Phase::kPrefill;
    if (counts) backlog += sequence.prompt_left();
  }
  if (backlog != prompt_backlog_) return fmt::format("backlog {} != {}", prompt_backlog_, backlog);
  return "";
}

std::string Scheduler::check_sequence(const Sequence& s) const {
  const int64_t held = static_cast<int64_t>(s.blocks.size());
  // What was preempted has none, though it may have ended since.
  const bool holds = s.phase != Phase::kWaiting && s.phase != Phase::kPreempted &&
                     (s.phase != Phase::kRetiring || held > 0);
  if (held != (holds ? blocks_for(s.num_computed) : 0)) {
    return fmt::format("{} blocks for {} positions", held, s.num_computed);
  }
  if (s.num_computed > s.num_positions()) return "planned past max_tokens";
  if (s.num_known() >= s.num_prompt + s.request.max_tokens && s.phase != Phase::kRetiring) {
    return "goes on after max_tokens";
  }
  if (s.num_published > s.blocks.size()) return "published more blocks than it holds";
  const bool timed = s.deadline != INT64_MAX && s.phase != Phase::kRetiring;
  if (timed != deadlines_.contains({s.deadline, s.id})) return "its deadline is not watched";
  switch (s.phase) {
    case Phase::kWaiting:
      return s.num_computed == 0 && s.in_flight == 0 && s.target == s.num_known()
                 ? ""
                 : "waits, but has been planned";
    case Phase::kPrefill:
      return s.prompt_left() > 0 && s.num_computed > 0 && s.target == s.num_known() ? ""
                                                                                    : "bad prefill";
    case Phase::kDecode:
      return s.prompt_left() <= 0 && s.num_computed < s.num_positions() ? "" : "bad decode";
    case Phase::kPlanned:
      return s.num_computed == s.num_positions() && s.in_flight > 0 ? "" : "planned, none is due";
    case Phase::kPreempted: return s.in_flight > 0 ? "" : "is preempted and no plan names it";
    case Phase::kRetiring: return s.in_flight > 0 ? "" : "has ended and no plan names it";
  }
  return "has no phase";
}

std::string Scheduler::check_flights() const {
  if (flights_.size() > static_cast<size_t>(num_lanes())) return "more plans than lanes";
  struct Count {
    int32_t plans = 0;
    int32_t outputs = 0;
    int32_t scores = 0;
    uint64_t last = 0;
  };
  std::unordered_map<const Sequence*, Count> counts;
  uint64_t number = next_plan_ - flights_.size();
  for (const InFlight& flight : flights_) {
    if (flight.number != number++) return fmt::format("plan {} is out of order", flight.number);
    for (const InFlight::PlannedRow& row : flight.rows) {
      Count& count = counts[row.sequence];
      ++count.plans;
      if (scores(row.output)) count.scores += row.count - (samples(row.output) ? 1 : 0);
      if (!samples(row.output)) continue;
      if (count.outputs > 0 && flight.number < count.last + static_cast<uint64_t>(config_.pp)) {
        return fmt::format("plans {} and {} decode the same request", count.last, flight.number);
      }
      ++count.outputs;
      count.last = flight.number;
    }
  }
  for (const auto& [id, sequence] : sequences_) {
    const Count count = counts[&sequence];
    if (count.plans != sequence.in_flight) {
      return fmt::format(
          "request {}: {} plans in flight, {} counted", id, count.plans, sequence.in_flight);
    }
    const int32_t sampled = std::max(0, 1 - sequence.prompt_left());
    const int32_t emitted = sequence.num_known() - sequence.target;  // since it was admitted
    if (sequence.phase != Phase::kRetiring && sampled != emitted + count.outputs) {
      return fmt::format("request {}: {} tokens planned, {} emitted, {} in flight", id, sampled,
          emitted, count.outputs);
    }
    const bool scored = sequence.request.sampling.num_prompt_logprobs >= 0;
    const int32_t planned = scored ? std::min(sequence.unscored, sequence.num_prompt - 1) : 0;
    const int32_t committed = static_cast<int32_t>(sequence.scored.size());
    const bool reported = sequence.num_known() > sequence.num_prompt;
    if (sequence.phase != Phase::kRetiring &&
        committed != (reported ? 0 : planned - count.scores)) {
      return fmt::format("request {}: {} ids of its prompt scored, {} in flight, {} planned", id,
          committed, count.scores, planned);
    }
  }
  return counts.size() <= sequences_.size() ? "" : "a plan in flight names a request that is gone";
}

std::string Scheduler::check_memory() const {
  std::map<BlockId, uint32_t> held;
  for (const auto& [id, sequence] : sequences_) {
    for (const Block& block : sequence.blocks) ++held[block.id()];
  }
  for (const auto& [block, count] : held) {
    if (count != pool_.count(block)) return fmt::format("block {} is not held {}x", block, count);
  }
  if (held.size() + pool_.num_free() != pool_.num_blocks()) {
    return fmt::format(
        "{} blocks held + {} free != {}", held.size(), pool_.num_free(), pool_.num_blocks());
  }
  return "";
}

std::string Scheduler::check_slots() const {
  if (table_.next_sequence() != next_plan_) return "the slot table_ missed a plan";
  std::set<uint16_t> used;
  for (const auto& [id, sequence] : sequences_) {
    if (sequence.phase == Phase::kWaiting) continue;
    const SlotTable::Slot& slot = table_.slot(sequence.slot);
    const bool preempted = sequence.blocks.empty();  // they are others' now
    const bool same =
        slot.active && slot.num_computed == static_cast<uint32_t>(sequence.num_computed) &&
        (preempted || std::ranges::equal(slot.blocks, sequence.blocks, {}, {}, &Block::id));
    if (!same) return fmt::format("request {} differs from its slot {}", id, sequence.slot);
    if (!used.insert(sequence.slot).second) return fmt::format("slot {} used twice", sequence.slot);
  }
  const std::set<uint16_t> free(free_slots_.begin(), free_slots_.end());
  const std::set<uint16_t> pending(pending_releases_.begin(), pending_releases_.end());
  if (free.size() != free_slots_.size() || pending.size() != pending_releases_.size()) {
    return "a slot is freed twice";
  }
  // A freed slot stays active in the table until a plan carries its release.
  for (int i = 0; i < table_.num_slots(); ++i) {
    const auto slot = static_cast<uint16_t>(i);
    if (used.contains(slot) == free.contains(slot)) return fmt::format("slot {} is lost", i);
    const bool active = used.contains(slot) || pending.contains(slot);
    if (active != table_.slot(slot).active) return fmt::format("slot {} was not released", i);
  }
  return "";
}

}  // namespace millrace
