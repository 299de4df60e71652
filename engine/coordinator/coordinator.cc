#include "engine/coordinator/coordinator.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <utility>

namespace millrace {

Coordinator::Coordinator(const CoordinatorConfig& config, Millis now)
    : config_(config),
      now_(now),
      load_began_(now),
      last_tick_(now),
      ranks_(static_cast<size_t>(config.engine.tp) * static_cast<size_t>(config.engine.pp)),
      results_(static_cast<size_t>(config.engine.pp)),
      enough_(4 * (static_cast<size_t>(config.engine.pp) + 1)),
      times_(static_cast<size_t>(config.engine.pp)) {}

void Coordinator::on(SubmitEvent& event) {
  switch (life_) {
    case Life::kLoading:
    case Life::kStarting:
      return refuse(event.id, ErrorCode::kUnavailable, "the model is loading; retry later");
    case Life::kDraining:
      return refuse(event.id, ErrorCode::kUnavailable,
          "the server is draining and takes no new requests; retry elsewhere");
    case Life::kStopped:
    case Life::kFailed:
      return refuse(event.id, ErrorCode::kUnavailable, "the engine has ended; retry later");
    case Life::kServing: break;
  }
  const int64_t timeout = event.request.timeout_ms;
  Status status =
      scheduler_->add(event.id, std::move(event.request), timeout > 0 ? now_ + timeout : INT64_MAX);
  if (!status.ok()) {
    return emit({.id = event.id, .finish = FinishReason::kError, .status = std::move(status)});
  }
  open_.emplace(event.id, now_);
}

void Coordinator::on(CancelEvent& event) {
  if (!open_.contains(event.id)) return;
  scheduler_->cancel(event.id);
  emit({.id = event.id, .finish = FinishReason::kCancelled});
}

void Coordinator::on(DrainEvent&) {
  if (loading()) {
    send_all(FrameType::kShutdown, {});
    finish(Life::kStopped, ExitCode::kOk, "drained before it was ready");
  } else if (life_ == Life::kServing) {
    life_ = Life::kDraining;
  }
}

void Coordinator::on(StopEvent& event) {
  if (over()) return;
  end_requests(event.reason);
  send_all(FrameType::kShutdown, {});
  finish(Life::kStopped, ExitCode::kOk, event.reason);
}

void Coordinator::plan_all() {
  if (!serving()) return;
  std::vector<Emission> failed;
  size_t num_failed = 0;
  do {
    num_failed = failed.size();
    while (auto plan = scheduler_->plan(failed)) {
      if (expected_.empty()) last_step_ = now_;
      auto& rows = expected_.emplace_back();
      for (const Row& row : plan->rows) {
        if (row.output != Output::kNone) rows.push_back({row.slot, row.count, row.output, {}});
      }
      enough_[num_issued_ % enough_.size()] = least_open_ >= static_cast<size_t>(config_.engine.pp);
      least_open_ = open_.size();
      ++num_issued_;
      send_all(FrameType::kPlan, encode(*plan));
    }
  } while (failed.size() > num_failed);  // whoever waited behind it may run now
  for (Emission& emission : failed) emit(std::move(emission));
  if (life_ == Life::kDraining && scheduler_->idle()) {
    send_all(FrameType::kShutdown, {});
    finish(Life::kStopped, ExitCode::kOk, "drained");
  }
}

void Coordinator::refuse(RequestId id, ErrorCode code, std::string message) {
  emit({.id = id, .finish = FinishReason::kError, .status = {code, std::move(message), ""}});
}

void Coordinator::emit(Emission emission) {
  if (emission.finish != FinishReason::kNone) open_.erase(emission.id);
  least_open_ = std::min(least_open_, open_.size());
  out_.push_back(Emit{std::move(emission)});
}

void Coordinator::send_all(FrameType type, const Bytes& body) {
  out_.push_back(SendAll{std::make_shared<const Bytes>(make_frame(type, config_.epoch, body))});
}

void Coordinator::end_requests(const std::string& message) {
  for (const auto& [id, came] : std::exchange(open_, {})) {
    scheduler_->cancel(id);
    refuse(id, ErrorCode::kUnavailable, message);
  }
}

void Coordinator::finish(Life end, ExitCode code, std::string message) {
  life_ = end;
  out_.push_back(Finished{code, std::move(message)});
}

void Coordinator::lose(int rank, const std::string& reason, ExitCode code) {
  const std::string lost =
      fmt::format("worker rank {} was lost{}: {}", rank, loading() ? " while loading" : "", reason);
  end_requests(lost + "; retry");
  finish(Life::kFailed, loading() ? code : ExitCode::kWorkerLost, lost);
}

void Coordinator::handle(Event event, Millis now, std::vector<Action>& actions) {
  now_ = now;
  if (!std::exchange(welcomed_, true)) send_all(FrameType::kWelcome, encode(config_.engine));
  std::visit([this](auto& each) { on(each); }, event);
  const auto* submitted = std::get_if<SubmitEvent>(&event);
  if (submitted == nullptr || !submitted->more) plan_all();
  std::move(out_.begin(), out_.end(), std::back_inserter(actions));
  out_.clear();
}

CoordinatorStats Coordinator::stats(Millis now) const {
  SchedulerStats known = scheduler_ ? scheduler_->stats() : SchedulerStats();
  const auto next = open_.find(known.next);
  return {.scheduler = std::move(known),
      .ready = scheduler_.has_value(),
      .healthy = serving() && all_beat(now),
      .queue_wait = next == open_.end() ? 0 : now - next->second,
      .stages = times_};
}

void StageTimes::add(const StepResult& result) {
  compute_us += result.compute_us;
  comm_us += result.comm_us;
  idle_us += result.idle_us;
  wait_us += result.wait_us;
}

namespace {

template <typename Part>
double fraction_of(const std::vector<StageTimes>& stages, const Part& part) {
  uint64_t sum = 0;
  uint64_t all = 0;
  for (const StageTimes& stage : stages) {
    sum += part(stage);
    all += stage.compute_us + stage.comm_us + stage.idle_us;
  }
  return all > 0 ? static_cast<double>(sum) / static_cast<double>(all) : 0;
}

}  // namespace

double CoordinatorStats::stage_bubble_fraction() const {
  return fraction_of(stages, [](const StageTimes& stage) { return stage.idle_us; });
}

double CoordinatorStats::exposed_comm_fraction() const {
  return fraction_of(stages, [](const StageTimes& stage) { return stage.comm_us + stage.wait_us; });
}

std::string Coordinator::check_integrity() const {
  if (!scheduler_) return open_.empty() ? "" : "requests are open before the replica is ready";
  if (std::string broken = scheduler_->check_integrity(); !broken.empty()) return broken;
  const SchedulerStats known = scheduler_->stats();
  if (static_cast<int32_t>(open_.size()) != known.running + known.waiting) {
    return fmt::format(
        "{} requests open, {} running, {} waiting", open_.size(), known.running, known.waiting);
  }
  const auto in_flight = static_cast<int32_t>(expected_.size());
  if (in_flight != scheduler_->num_in_flight() ||
      results_.back() + expected_.size() != num_issued_) {
    return fmt::format(
        "{} plans in flight, the scheduler says {}", in_flight, scheduler_->num_in_flight());
  }
  return over() && !open_.empty() ? "requests are open though the replica is over" : "";
}

}  // namespace millrace
