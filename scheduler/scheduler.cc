#include "scheduler/scheduler.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <utility>

namespace millrace {

namespace {

// A priority is worth so many places in the queue: a bound, so that no stream of higher ones
// starves a lower one.
constexpr int64_t kPlacesPerPriority = 4096;

}  // namespace

Scheduler::Scheduler(const SchedulerConfig& config)
    : config_(config),
      pool_(config.num_blocks),
      cache_(pool_, config.block_size, config.cache_key),
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

Status Scheduler::add(RequestId id, Request request, int64_t deadline) {
  CHECK(!request.prompt.empty() && request.max_tokens >= 1, "request {}: prompt of {}, {} to come",
      id, request.prompt.size(), request.max_tokens);
  CHECK(!sequences_.contains(id), "request {} is known already", id);
  const int64_t length = static_cast<int64_t>(request.prompt.size()) + request.max_tokens;
  if (length > int64_t{config_.num_blocks} * config_.block_size) {
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
  sequence.ids = std::move(request.prompt);
  sequence.num_prompt = sequence.target = sequence.num_known();
  sequence.request = std::move(request);
  sequence.arrival = num_arrivals_++;
  const bool scores = sequence.request.sampling.num_prompt_logprobs >= 0;
  if (scores && sequence.num_prompt > 1) sequence.unscored = 0;
  sequence.rank =
      static_cast<int64_t>(sequence.arrival) - kPlacesPerPriority * sequence.request.priority;
  sequence.deadline = deadline;
  if (deadline != INT64_MAX) deadlines_.insert({deadline, id});
  lowest_priority_ = std::min(lowest_priority_, sequence.request.priority);
  auto& waiting = list(Phase::kWaiting);
  sequence.place = waiting.insert(place_in(waiting, sequence), &sequence);
  prompt_backlog_ += sequence.target;
  return {};
}

void Scheduler::cancel(RequestId id) {
  const auto found = sequences_.find(id);
  if (found != sequences_.end() && found->second.phase != Phase::kRetiring) retire(found->second);
}

std::vector<Emission> Scheduler::expire(int64_t now) {
  std::vector<Emission> ended;
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    const RequestId id = deadlines_.begin()->second;
    ended.push_back({.id = id,
        .tokens = {},
        .finish = FinishReason::kError,
        .status = {ErrorCode::kTimeout, "the request did not end within its time", ""}});
    retire(sequences_.at(id));
  }
  return ended;
}

std::list<Scheduler::Sequence*>::iterator Scheduler::place_in(
    std::list<Sequence*>& ranked, const Sequence& sequence) {
  // New ones mostly go last, preempted ones first.
  if (!ranked.empty() && sequence.goes_before(*ranked.front())) return ranked.begin();
  auto at = ranked.end();
  while (at != ranked.begin() && sequence.goes_before(**std::prev(at))) --at;
  return at;
}

void Scheduler::move(Sequence& sequence, Phase phase) {
  auto& to = list(phase);
  const bool ranked = phase == Phase::kWaiting || phase == Phase::kPrefill;
  to.splice(ranked ? place_in(to, sequence) : to.end(), list(sequence.phase), sequence.place);
  sequence.phase = phase;
}

void Scheduler::retire(Sequence& sequence) {
  deadlines_.erase({sequence.deadline, sequence.id});
  if (sequence.phase == Phase::kWaiting || sequence.phase == Phase::kPrefill) {
    prompt_backlog_ -= sequence.prompt_left();
  }
  if (sequence.in_flight > 0) {
    move(sequence, Phase::kRetiring);
    return;
  }
  forget(sequence);
}

void Scheduler::forget(Sequence& sequence) {
  if (sequence.phase != Phase::kWaiting) free_slot(sequence);
  // The beginning of a prefix is of use to more than its end: it is evicted later.
  while (!sequence.blocks.empty()) sequence.blocks.pop_back();
  list(sequence.phase).erase(sequence.place);
  sequences_.erase(sequence.id);
}

void Scheduler::wait_again(Sequence& sequence) {
  free_slot(sequence);
  sequence.num_computed = 0;
  sequence.target = sequence.num_known();
  prompt_backlog_ += sequence.target;
  move(sequence, Phase::kWaiting);
}

// No plan in flight names the slot, and the next plan releases it before it admits: whoever gets
// it from here on gets it after the ranks let go.
void Scheduler::free_slot(const Sequence& sequence) {
  free_slots_.push_back(sequence.slot);
  pending_releases_.push_back(sequence.slot);
}

SchedulerStats Scheduler::stats() const {
  double model_error = 0;
  std::vector<StepModel::Terms> step_models;
  for (const StepModel& model : models_) {
    model_error = std::max(model_error, model.error());
    step_models.push_back(model.weights());
  }
  const auto& queue = list(Phase::kWaiting);
  return {.running = size(Phase::kPrefill) + size(Phase::kDecode) + size(Phase::kPlanned),
      .waiting = size(Phase::kWaiting) + size(Phase::kPreempted),
      .next = queue.empty() ? 0 : queue.front()->id,
      .free_blocks = pool_.num_free(),
      .num_blocks = pool_.num_blocks(),
      .steps = steps_,
      .tokens_computed = tokens_computed_,
      .tokens_emitted = tokens_emitted_,
      .preemptions = preemptions_,
      .admitted_tokens = admitted_tokens_,
      .prefix_hit_tokens = prefix_hit_tokens_,
      .lane_spread = lane_spread_,
      .model_error = model_error,
      .step_models = std::move(step_models)};
}

}  // namespace millrace
