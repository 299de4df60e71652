#include "launch/sim/replica.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "engine/model/cost.h"

namespace millrace {

namespace {

constexpr double kCacheShare = 0.92;  // of the memory that is free, as on a real GPU

CoordinatorConfig coordinator_config(const ReplicaConfig& config) {
  CoordinatorConfig coordinator;
  coordinator.engine = config.engine;
  coordinator.max_queue = config.max_queue;
  coordinator.max_stretch = config.max_stretch;
  coordinator.balance = config.balance;
  return coordinator;
}

}  // namespace

Replica::Replica(const ReplicaConfig& config)
    : config_(config),
      coordinator_(coordinator_config(config), /*now=*/0),
      follower_(config.engine.max_num_seqs) {
  const EngineConfig& engine = config.engine;
  if (engine.tp > config.gpus_per_host) {
    throw Error(ExitCode::kLayout,
        "--tensor-parallel-size {} exceeds --gpus-per-host {}: the ranks of a stage share a host; "
        "use more stages instead",
        engine.tp, config.gpus_per_host);
  }
  if (config.step_models.empty()) {
    for (const Stage& stage : cut_stages(config.model, engine)) {
      costs_.emplace_back(config.model, stage, engine.tp, config_.gpu);
      times_.push_back({.num_layers = stage.num_layers});
    }
  }
  times_.resize(static_cast<size_t>(engine.pp));
  free_at_.resize(times_.size());
  link_free_.resize(times_.size());
  num_blocks_ = config.num_blocks > 0 ? config.num_blocks : count_blocks();
  std::vector<Emission> emissions;
  std::vector<Message> messages;
  const int num_ranks = engine.tp * engine.pp;
  for (int rank = 0; rank < num_ranks; ++rank) {
    handle(FrameEvent{rank, ready_frame(rank, num_blocks_, /*epoch=*/1)}, 0, emissions, messages);
  }
  for (int rank = 0; rank < num_ranks; ++rank) {
    handle(FrameEvent{rank, started_frame(/*epoch=*/1)}, 0, emissions, messages);
  }
}

uint32_t Replica::count_blocks() const {
  const EngineConfig& engine = config_.engine;
  const int64_t length =
      engine.max_model_len > 0 ? engine.max_model_len : config_.model.max_position;
  double blocks = static_cast<double>((length + engine.block_size - 1) / engine.block_size) *
                  engine.max_num_seqs;
  for (size_t s = 0; s < costs_.size(); ++s) {
    const double free_bytes = (config_.gpu.memory_bytes - costs_[s].weight_bytes()) * kCacheShare;
    const double bytes =
        engine.kv_cache_bytes > 0 ? static_cast<double>(engine.kv_cache_bytes) : free_bytes;
    blocks = std::min(blocks, bytes / (costs_[s].kv_bytes_per_token() * engine.block_size));
    if (free_bytes < bytes || blocks < 1) {
      throw Error(ExitCode::kOutOfMemory,
          "stage {} holds {:.1f} GB of weights for each GPU, too much for the {:.0f} GB of a {}: "
          "use a higher -tp or -pp",
          s, costs_[s].weight_bytes() / 1e9, config_.gpu.memory_bytes / 1e9, config_.gpu.name);
    }
  }
  return static_cast<uint32_t>(blocks);
}

void Replica::handle(
    Event event, double now_s, std::vector<Emission>& emissions, std::vector<Message>& messages) {
  actions_.clear();
  coordinator_.handle(std::move(event), static_cast<Millis>(now_s * 1e3), actions_);
  for (const Action& action : actions_) perform(action, now_s, emissions, messages);
}

void Replica::perform(const Action& action, double now_s, std::vector<Emission>& emissions,
    std::vector<Message>& messages) {
  if (const auto* emit = std::get_if<Emit>(&action)) {
    emissions.push_back(emit->emission);
  } else if (const auto* send = std::get_if<SendAll>(&action)) {
    const std::span<const uint8_t> frame(*send->frame);
    FrameHeader header;
    CHECK(decode(frame, &header), "a frame of {} bytes has no header", frame.size());
    if (header.type != FrameType::kPlan) return;
    StepPlan plan;
    CHECK(decode(frame.subspan(kFrameHeaderBytes), &plan), "a plan of {} bytes", frame.size());
    run(plan, now_s, messages);
  } else if (const auto* finished = std::get_if<Finished>(&action)) {
    CHECK(false, "the simulated replica ended: {}", finished->message);
  }
}

// Measured times have the reduces and the transfers' copies in them.
double Replica::step_seconds(size_t stage, const LayerWork& work) const {
  if (config_.step_models.empty()) return costs_[stage].seconds(work);
  if (work.tokens == 0) return 0;
  StepWork step;
  step.decode_rows = static_cast<int32_t>(work.decode_rows);
  step.prefill_tokens = static_cast<int32_t>(work.tokens - work.decode_rows);
  step.context = static_cast<int64_t>(work.decode_keys);
  step.pairs = static_cast<int64_t>(work.prefill_keys);
  return config_.step_models[stage].seconds(step);
}

double Replica::transfer_seconds(int stage, double tokens) const {
  if (!config_.step_models.empty()) return 0;
  const int from = stage * config_.engine.tp;
  const int to = from + config_.engine.tp;
  const bool one_host = from / config_.gpus_per_host == to / config_.gpus_per_host;
  const Efficiency efficiency;
  const double rate = one_host ? config_.gpu.link_bytes_per_s : config_.network_bytes_per_s;
  return tokens * 2 * config_.model.hidden_size / (rate * efficiency.link);
}

void Replica::run(const StepPlan& plan, double now_s, std::vector<Message>& messages) {
  const Efficiency efficiency;
  const LayerWork work = follower_.follow(plan);
  const double received = now_s + efficiency.control_s;
  const size_t num_stages = times_.size();
  double input = work.has_decode && sampled_at_.size() == num_stages ? sampled_at_.front() : 0;
  double sent = received;  // by the stage before
  for (size_t s = 0; s < num_stages; ++s) {
    const bool runs = work.tokens > 0;  // else the rank only answers, in order
    if (s > 0 && runs) {
      const double begin = std::max(sent, link_free_[s]);
      link_free_[s] = begin + transfer_seconds(static_cast<int>(s) - 1, work.tokens);
      input = link_free_[s] + efficiency.transfer_s;
    }
    const double ready = std::max(received, free_at_[s]);
    const double begin = std::max(ready, runs ? input : 0.0);
    const double end = begin + step_seconds(s, work);
    StepResult result =
        PlanFollower::answer(plan, static_cast<int>(s), /*is_last=*/s + 1 == num_stages);
    if (runs) {
      account(s, work, {begin, end}, ready, s > 0 ? sent : begin, result);
    }
    messages.push_back({end + efficiency.control_s, static_cast<int>(s) * config_.engine.tp,
        make_frame(FrameType::kResult, /*epoch=*/1, encode(result))});
    sent = end;
  }
  if (sampled_at_.size() == num_stages) sampled_at_.pop_front();
  sampled_at_.push_back(sent + (num_stages > 1 ? efficiency.transfer_s : 0));
}

void Replica::account(size_t s, const LayerWork& work, const Span& step, double ready, double sent,
    StepResult& result) {
  StageTimes& times = times_[s];
  const double seconds = step.end - step.begin;
  const double reduces = costs_.empty() ? 0 : costs_[s].reduce_seconds(work);
  const double idle = step.begin - free_at_[s];
  times.busy_s += seconds;
  times.reduce_s += reduces;
  times.transfer_s += std::max(0.0, step.begin - std::max(ready, sent));
  if (idle > 0) times.idle.push_back({free_at_[s], step.begin});
  free_at_[s] = step.end;
  const auto to_us = [](double value) { return static_cast<uint32_t>(std::max(0.0, value) * 1e6); };
  result.compute_us = to_us(seconds - reduces);
  result.comm_us = to_us(reduces);
  result.idle_us = to_us(idle);
  result.wait_us = to_us(step.begin - ready);
}

}  // namespace millrace
