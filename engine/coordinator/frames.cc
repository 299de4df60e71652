// What the workers say. They are ours and proved the session key, but a frame is still outside
// bytes: what is not exactly what is due ends the replica with the rank's name, never the process.
#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <utility>

#include "engine/coordinator/coordinator.h"

namespace millrace {

namespace {

// A code of the published table other than ok; an unknown number is a plain failure.
ExitCode exit_code_of(int32_t number) {
  const bool known = (number >= static_cast<int>(ExitCode::kFailure) &&
                         number <= static_cast<int>(ExitCode::kInput)) ||
                     number == static_cast<int>(ExitCode::kBug);
  return known ? static_cast<ExitCode>(number) : ExitCode::kFailure;
}

}  // namespace

void Coordinator::on(FrameEvent& event) {
  const int rank = event.rank;
  CHECK(rank >= 0 && rank < static_cast<int>(ranks_.size()), "a frame of rank {}", rank);
  if (over()) return;
  const std::span<const uint8_t> frame(event.frame);
  FrameHeader header;
  bool valid = decode(frame, &header) && frame.size() == kFrameHeaderBytes + header.length;
  if (valid && header.epoch < config_.epoch) return;  // of a life before this one
  valid = valid && header.epoch == config_.epoch;
  if (valid) {
    ranks_[static_cast<size_t>(rank)].last_heard = now_;
    const auto body = frame.subspan(kFrameHeaderBytes);
    switch (header.type) {
      case FrameType::kReady: valid = on_ready(rank, body); break;
      case FrameType::kStarted: valid = on_started(rank, body); break;
      case FrameType::kResult: valid = on_result(rank, body); break;
      case FrameType::kHeartbeat: valid = on_heartbeat(rank, body); break;
      case FrameType::kFailed: valid = on_failed(rank, body); break;
      default:  // what only a coordinator says
        valid = false;
    }
  }
  if (!valid) lose(rank, "it sent a frame that is malformed or was not due");
}

void Coordinator::on(LinkClosedEvent& event) {
  if (over()) return;  // its kFailed came first and said more
  lose(event.rank, event.reason);
}

bool Coordinator::on_ready(int rank, std::span<const uint8_t> body) {
  Ready ready;
  Rank& from = ranks_[static_cast<size_t>(rank)];
  if (life_ != Life::kLoading || from.ready || !decode(body, &ready) || ready.rank != rank) {
    return false;
  }
  from.ready = std::move(ready);
  if (std::ranges::all_of(ranks_, [](const Rank& r) { return r.ready.has_value(); })) {
    start_ranks();
  }
  return true;
}

void Coordinator::start_ranks() {
  std::string others;
  const Rank* smallest = &ranks_[0];
  for (const Rank& rank : ranks_) {
    if (rank.ready->config_hash != ranks_[0].ready->config_hash) {
      others += fmt::format("{}{}", others.empty() ? "" : ", ", rank.ready->rank);
    }
    if (rank.ready->num_blocks < smallest->ready->num_blocks) smallest = &rank;
  }
  if (!others.empty()) {
    return finish(Life::kFailed, ExitCode::kModel,
        fmt::format("rank {} read another model or layout than rank 0; put the same "
                    "files at {} on every host",
            others, config_.engine.model_path));
  }
  num_blocks_ = smallest->ready->num_blocks;
  if (num_blocks_ == 0) {
    return finish(Life::kFailed, ExitCode::kOutOfMemory,
        fmt::format("rank {} has no memory left for the KV cache; use more ranks or a "
                    "smaller model",
            smallest->ready->rank));
  }
  for (Rank& rank : ranks_) rank.last_heard = now_;
  last_step_ = now_;
  life_ = Life::kStarting;
  send_all(FrameType::kStart, encode(Start{num_blocks_}));
}

bool Coordinator::on_started(int rank, std::span<const uint8_t> body) {
  Rank& from = ranks_[static_cast<size_t>(rank)];
  if (life_ != Life::kStarting || from.started || !body.empty()) return false;
  from.started = true;
  if (std::ranges::all_of(ranks_, &Rank::started)) start_serving();
  return true;
}

void Coordinator::start_serving() {
  const EngineConfig& engine = config_.engine;
  scheduler_.emplace(SchedulerConfig{.pp = engine.pp,
      .block_size = engine.block_size,
      .num_blocks = num_blocks_,
      .max_num_seqs = engine.max_num_seqs,
      .max_num_batched_tokens = engine.max_num_batched_tokens,
      .max_queue = config_.max_queue,
      .max_stretch = config_.max_stretch,
      .balance = config_.balance,
      .cache_key = config_.cache_key});
  life_ = Life::kServing;
  std::vector<Ready> readies;
  for (const Rank& rank : ranks_) readies.push_back(*rank.ready);
  out_.emplace_back(BecameReady{num_blocks_, std::move(readies)});
}

bool Coordinator::on_result(int rank, std::span<const uint8_t> body) {
  StepResult result;
  if (!serving() || !decode(body, &result)) return false;
  if (rank % config_.engine.tp != 0 || result.stage != stage_of(rank)) return false;
  uint64_t& answered = results_[result.stage];
  if (result.sequence != answered || answered >= num_issued_ || !answers_plan(result)) return false;
  ++answered;
  if (num_issued_ - result.sequence <= enough_.size() &&
      enough_[result.sequence % enough_.size()]) {
    times_[result.stage].add(result);
  }
  scheduler_->observe(result);
  if (result.stage + 1 < num_stages()) return true;
  expected_.pop_front();
  last_step_ = now_;
  for (Emission& emission : scheduler_->commit(result)) emit(std::move(emission));
  return true;
}

// Rows come from the last stage alone: those of its oldest plan in flight, as many tokens as asked.
bool Coordinator::answers_plan(const StepResult& result) const {
  if (result.stage + 1 < num_stages()) return result.rows.empty();
  return std::ranges::equal(
      result.rows, expected_.front(), [](const RowResult& row, const Row& planned) {
        const size_t times = row.status == RowStatus::kOk ? 1 : 0;
        return row.slot == planned.slot && row.tokens.size() == times * planned.num_sampled() &&
               row.scored.size() == times * planned.num_scored();
      });
}

bool Coordinator::on_heartbeat(int rank, std::span<const uint8_t> body) {
  Heartbeat heartbeat;
  if (!decode(body, &heartbeat) || heartbeat.rank != rank) return false;
  Rank& from = ranks_[static_cast<size_t>(rank)];
  if (heartbeat.steps_done != from.heartbeat.steps_done ||
      heartbeat.progress != from.heartbeat.progress) {
    from.last_moved = now_;
  }
  from.heartbeat = heartbeat;
  return true;
}

bool Coordinator::on_failed(int rank, std::span<const uint8_t> body) {
  Failed failed;
  if (!decode(body, &failed) || failed.rank != rank) return false;
  lose(rank, failed.message.empty() ? "it gave no reason" : failed.message,
      exit_code_of(failed.exit_code));
  return true;
}

}  // namespace millrace
