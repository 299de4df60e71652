// Who holds blocks: admission by what is free, prefixes found again, and preemption by
// recomputation. Blocks of a preempted sequence serve others at once: every rank runs plans in one
// order, so what is in flight is through with them before a later plan writes.
#include <algorithm>

#include "scheduler/scheduler.h"

namespace millrace {

namespace {

// Kept free at an admission, for each running sequence to grow: few are preempted soon after.
constexpr int64_t kGrowthBlocks = 4;

}  // namespace

int32_t Scheduler::blocks_for(int64_t positions) const {
  return static_cast<int32_t>((positions + config_.block_size - 1) / config_.block_size);
}

// At least one position is left to compute: its logits give the next token. So are those that are
// still to be scored.
Scheduler::Prefix Scheduler::find_prefix(const Sequence& sequence) const {
  Prefix prefix;
  prefix.chain.salt = sequence.request.cache_salt;
  const auto size = static_cast<size_t>(config_.block_size);
  const std::span<const int32_t> ids(sequence.ids);
  const size_t most = std::min(ids.size() - 1, static_cast<size_t>(sequence.unscored));
  for (size_t end = size; end <= most; end += size) {
    uint64_t plan = 0;
    const BlockId* block = cache_.find(prefix.chain, ids.subspan(end - size, size), &plan);
    if (block == nullptr) break;
    prefix.computing = plan == next_plan_;
    if (prefix.computing) break;
    prefix.blocks.push_back(*block);
    if (pool_.count(*block) == 0) ++prefix.num_idle;
  }
  return prefix;
}

// Free blocks less those that prompts under way will take.
int64_t Scheduler::blocks_to_admit() const {
  int64_t free = pool_.num_free();
  for (const Sequence* sequence : list(Phase::kPrefill)) {
    free -= blocks_for(sequence->target) - static_cast<int64_t>(sequence->blocks.size());
  }
  return free;
}

// Whether there is memory for all that is known of the sequence.
bool Scheduler::fits(const Sequence& sequence, const Prefix& prefix) {
  const int64_t running = size(Phase::kPrefill) + size(Phase::kDecode);
  const int64_t growth = std::min<int64_t>(running * kGrowthBlocks, config_.num_blocks / 16);
  const int64_t found = static_cast<int64_t>(prefix.blocks.size()) - prefix.num_idle;
  const int64_t free = blocks_to_admit();
  const bool fit = blocks_for(sequence.target) - found + growth <= free;
  if (!fit) blocked_ = {sequence.id, free};
  return fit;
}

void Scheduler::admit(Sequence& sequence, const Prefix& prefix, StepPlan& plan) {
  sequence.slot = free_slots_.back();
  free_slots_.pop_back();
  for (const BlockId block : prefix.blocks) sequence.blocks.push_back(pool_.share(block));
  sequence.num_published = prefix.blocks.size();
  sequence.num_told = 0;
  sequence.chain = prefix.chain;
  sequence.num_computed = static_cast<int32_t>(prefix.blocks.size()) * config_.block_size;
  prompt_backlog_ -= sequence.num_computed;
  admitted_tokens_ += static_cast<uint64_t>(sequence.target);
  prefix_hit_tokens_ += static_cast<uint64_t>(sequence.num_computed);
  move(sequence, Phase::kPrefill);
  Admission& admission = plan.admissions.emplace_back();
  admission.slot = sequence.slot;
  admission.num_computed = static_cast<uint32_t>(sequence.num_computed);
  admission.num_prompt = static_cast<uint32_t>(sequence.num_prompt);
  admission.sampling = sequence.request.sampling;
  admission.token_ids = sequence.ids;
  admission.logit_bias = sequence.request.logit_bias;
}

// The last by rank of the running sequences behind this one that have no row in the plan in the
// making; of a lower priority than `priority_below`.
Scheduler::Sequence* Scheduler::last_behind(const Sequence& sequence, int32_t priority_below) {
  Sequence* last = nullptr;
  for (const Phase phase : {Phase::kPrefill, Phase::kDecode}) {
    for (Sequence* other : list(phase)) {
      if (other->last_row != next_plan_ && other->request.priority < priority_below &&
          sequence.goes_before(last == nullptr ? *other : *last) &&
          (last == nullptr || last->goes_before(*other))) {
        last = other;
      }
    }
  }
  return last;
}

// Higher priority takes the place of lower: the head of the queue, if that lets it in.
void Scheduler::make_way() {
  const auto& waiting = list(Phase::kWaiting);
  if (waiting.empty()) return;
  const Sequence& head = *waiting.front();
  const int32_t priority = head.request.priority;
  if (priority <= lowest_priority_) return;
  const Prefix prefix = find_prefix(head);
  int64_t evictable = 0;
  for (const Phase phase : {Phase::kPrefill, Phase::kDecode}) {
    for (const Sequence* other : list(phase)) {
      const bool behind = other->request.priority < priority && head.goes_before(*other);
      if (behind) evictable += static_cast<int64_t>(other->blocks.size());
    }
  }
  if (evictable == 0 || blocks_for(head.target) > blocks_to_admit() + evictable) return;
  // A slot that is on its way back is waited for.
  const bool slot_comes = size(Phase::kPreempted) + size(Phase::kRetiring) > 0;
  bool needs_slot = free_slots_.empty() && !slot_comes;
  while (needs_slot || !fits(head, prefix)) {
    Sequence* last = last_behind(head, priority);
    if (last == nullptr) return;
    preempt(*last);
    needs_slot = false;
  }
}

// Frees what a row of so many tokens needs, from those behind; returns how many of the tokens then
// have room.
int32_t Scheduler::secure_blocks(const Sequence& sequence, int32_t count) {
  const int64_t needed = blocks_for(int64_t{sequence.num_computed} + count) -
                         static_cast<int64_t>(sequence.blocks.size());
  while (pool_.num_free() < needed) {
    Sequence* last = last_behind(sequence, INT32_MAX);
    if (last == nullptr) break;
    preempt(*last);
  }
  const int64_t blocks = static_cast<int64_t>(sequence.blocks.size()) + pool_.num_free();
  const int64_t room = blocks * config_.block_size - sequence.num_computed;
  return static_cast<int32_t>(std::min<int64_t>(count, room));
}

void Scheduler::preempt(Sequence& sequence) {
  ++preemptions_;
  if (sequence.phase == Phase::kPrefill) prompt_backlog_ -= sequence.prompt_left();
  while (!sequence.blocks.empty()) sequence.blocks.pop_back();
  sequence.num_published = 0;
  if (sequence.in_flight > 0) {
    move(sequence, Phase::kPreempted);
  } else {
    wait_again(sequence);
  }
}

// Full blocks whose ids are known are there for others, from the plan after `plan` on.
void Scheduler::publish(Sequence& sequence, uint64_t plan) {
  const auto size = static_cast<size_t>(config_.block_size);
  const auto num_held = sequence.blocks.size();
  const auto num_full =
      static_cast<size_t>(std::min(sequence.num_computed, sequence.num_known())) / size;
  const std::span<const int32_t> ids(sequence.ids);
  while (sequence.num_published < std::min(num_full, num_held)) {
    const size_t i = sequence.num_published++;
    cache_.add(sequence.chain, ids.subspan(i * size, size), sequence.blocks[i], plan);
  }
}

}  // namespace millrace
