#include "scheduler/scheduler.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace millrace {

Scheduler::Scheduler(const SchedulerConfig& config)
    : config_(config),
      pool_(config.num_blocks),
      table_(config.max_num_seqs, config.block_size, config.num_blocks),
      models_(static_cast<size_t>(config.pp)),
      issued_(4 * static_cast<size_t>(num_lanes())) {
  CHECK(config.pp >= 1 && config.num_blocks >= 1 && config.max_num_batched_tokens >= 1 &&
            config.max_queue >= 0,
      "pp {}, {} blocks, {} tokens a step, queue of {}", config.pp, config.num_blocks,
      config.max_num_batched_tokens, config.max_queue);
  for (int slot = config.max_num_seqs; slot > 0; --slot) {
    free_slots_.push_back(static_cast<uint16_t>(slot - 1));
  }
}

Status Scheduler::add(RequestId id, Request request) {
  CHECK(!request.prompt.empty() && request.max_tokens >= 1, "request {}: prompt of {}, {} to come",
      id, request.prompt.size(), request.max_tokens);
  CHECK(!sequences_.contains(id), "request {} is known already", id);
  const int64_t length = static_cast<int64_t>(request.prompt.size()) + request.max_tokens;
  const int64_t blocks = (length + config_.block_size - 1) / config_.block_size;
  if (blocks > config_.num_blocks) {
    return {ErrorCode::kInvalidArgument,
        fmt::format("prompt and max_tokens come to {} tokens, but the KV cache holds {}; ask "
                    "for fewer tokens, or serve with a larger KV cache",
            length, int64_t{config_.num_blocks} * config_.block_size),
        "max_tokens"};
  }
  if (size(Phase::kWaiting) >= config_.max_queue) {
    return {ErrorCode::kOverloaded,
        fmt::format("{} requests are waiting already; retry later", config_.max_queue), ""};
  }
  Sequence& sequence = sequences_[id];
  sequence.id = id;
  sequence.request = std::move(request);
  sequence.reserved = static_cast<uint32_t>(blocks);
  auto& waiting = list(Phase::kWaiting);
  sequence.place = waiting.insert(waiting.end(), &sequence);
  prompt_backlog_ += sequence.prompt_left();
  return {};
}

void Scheduler::cancel(RequestId id) {
  const auto found = sequences_.find(id);
  if (found != sequences_.end() && found->second.phase != Phase::kRetiring) retire(found->second);
}

void Scheduler::move(Sequence& sequence, Phase phase) {
  auto& to = list(phase);
  to.splice(to.end(), list(sequence.phase), sequence.place);
  sequence.phase = phase;
}

void Scheduler::retire(Sequence& sequence) {
  prompt_backlog_ -= std::max(0, sequence.prompt_left());
  if (sequence.phase != Phase::kWaiting && sequence.in_flight > 0) {
    move(sequence, Phase::kRetiring);
    return;
  }
  forget(sequence);
}

void Scheduler::forget(Sequence& sequence) {
  if (sequence.phase != Phase::kWaiting) {
    // No plan in flight names the slot, and the next plan releases it before it admits: whoever
    // gets the slot or the blocks from here on gets them after the ranks let go.
    free_slots_.push_back(sequence.slot);
    pending_releases_.push_back(sequence.slot);
    reserved_blocks_ -= sequence.reserved;
  }
  list(sequence.phase).erase(sequence.place);
  sequences_.erase(sequence.id);
}

SchedulerStats Scheduler::stats() const {
  double model_error = 0;
  for (const StepModel& model : models_) model_error = std::max(model_error, model.error());
  return {.running = size(Phase::kPrefill) + size(Phase::kDecode) + size(Phase::kPlanned),
      .waiting = size(Phase::kWaiting),
      .free_blocks = pool_.num_free(),
      .num_blocks = pool_.num_blocks(),
      .steps = steps_,
      .tokens_computed = tokens_computed_,
      .tokens_emitted = tokens_emitted_,
      .lane_spread = lane_spread(),
      .model_error = model_error};
}

}  // namespace millrace
