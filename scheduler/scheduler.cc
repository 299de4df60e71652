#include "scheduler/scheduler.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "scheduler/state.h"

namespace millrace {

Scheduler::State::State(const SchedulerConfig& config)
    : config(config),
      pool(config.num_blocks),
      table(config.max_num_seqs, config.block_size, config.num_blocks) {
  CHECK(config.pp >= 1 && config.num_blocks >= 1 && config.max_num_batched_tokens >= 1 &&
            config.max_queue >= 0,
      "pp {}, {} blocks, {} tokens a step, queue of {}", config.pp, config.num_blocks,
      config.max_num_batched_tokens, config.max_queue);
  for (int slot = config.max_num_seqs; slot > 0; --slot) {
    free_slots.push_back(static_cast<uint16_t>(slot - 1));
  }
}

Status Scheduler::State::add(RequestId id, Request request) {
  CHECK(!request.prompt.empty() && request.max_tokens >= 1, "request {}: prompt of {}, {} to come",
      id, request.prompt.size(), request.max_tokens);
  CHECK(!sequences.contains(id), "request {} is known already", id);
  const int64_t length = static_cast<int64_t>(request.prompt.size()) + request.max_tokens;
  const int64_t blocks = (length + config.block_size - 1) / config.block_size;
  if (blocks > config.num_blocks) {
    return {ErrorCode::kInvalidArgument,
        fmt::format("prompt and max_tokens come to {} tokens, but the KV cache holds {}; ask "
                    "for fewer tokens, or serve with a larger KV cache",
            length, int64_t{config.num_blocks} * config.block_size),
        "max_tokens"};
  }
  if (size(Phase::kWaiting) >= config.max_queue) {
    return {ErrorCode::kOverloaded,
        fmt::format("{} requests are waiting already; retry later", config.max_queue), ""};
  }
  Sequence& sequence = sequences[id];
  sequence.id = id;
  sequence.request = std::move(request);
  sequence.reserved = static_cast<uint32_t>(blocks);
  auto& waiting = list(Phase::kWaiting);
  sequence.place = waiting.insert(waiting.end(), &sequence);
  prompt_backlog += sequence.prompt_left();
  return {};
}

void Scheduler::State::cancel(RequestId id) {
  const auto found = sequences.find(id);
  if (found != sequences.end() && found->second.phase != Phase::kRetiring) retire(found->second);
}

void Scheduler::State::move(Sequence& sequence, Phase phase) {
  auto& to = list(phase);
  to.splice(to.end(), list(sequence.phase), sequence.place);
  sequence.phase = phase;
}

void Scheduler::State::retire(Sequence& sequence) {
  prompt_backlog -= std::max(0, sequence.prompt_left());
  if (sequence.phase != Phase::kWaiting && sequence.in_flight > 0) {
    move(sequence, Phase::kRetiring);
    return;
  }
  forget(sequence);
}

void Scheduler::State::forget(Sequence& sequence) {
  if (sequence.phase != Phase::kWaiting) {
    // No plan in flight names the slot, and the next plan releases it before it admits: whoever
    // gets the slot or the blocks from here on gets them after the ranks let go.
    free_slots.push_back(sequence.slot);
    pending_releases.push_back(sequence.slot);
    reserved_blocks -= sequence.reserved;
  }
  list(sequence.phase).erase(sequence.place);
  sequences.erase(sequence.id);
}

Scheduler::Scheduler(const SchedulerConfig& config) : state_(std::make_unique<State>(config)) {}
Scheduler::~Scheduler() = default;

Status Scheduler::add(RequestId id, Request request) { return state_->add(id, std::move(request)); }
void Scheduler::cancel(RequestId id) { state_->cancel(id); }

std::optional<StepPlan> Scheduler::plan(std::vector<Emission>& failed) {
  return state_->plan(failed);
}

std::vector<Emission> Scheduler::commit(const StepResult& result) { return state_->commit(result); }

int32_t Scheduler::num_in_flight() const { return static_cast<int32_t>(state_->flights.size()); }

bool Scheduler::idle() const { return state_->sequences.empty() && state_->flights.empty(); }

SchedulerStats Scheduler::stats() const {
  const State& s = *state_;
  SchedulerStats stats;
  stats.running = s.size(Phase::kPrefill) + s.size(Phase::kDecode) + s.size(Phase::kPlanned);
  stats.waiting = s.size(Phase::kWaiting);
  stats.free_blocks = s.pool.num_free();
  stats.num_blocks = s.pool.num_blocks();
  stats.steps = s.steps;
  stats.tokens_computed = s.tokens_computed;
  stats.tokens_emitted = s.tokens_emitted;
  return stats;
}

std::string Scheduler::check_integrity() const { return state_->check_integrity(); }

}  // namespace millrace
