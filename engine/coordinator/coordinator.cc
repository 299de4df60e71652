#include "engine/coordinator/coordinator.h"

#include <fmt/format.h>

#include <iterator>
#include <utility>

#include "engine/coordinator/state.h"

namespace millrace {

Coordinator::State::State(const CoordinatorConfig& config, Millis now)
    : config(config),
      now(now),
      load_began(now),
      last_tick(now),
      ranks(static_cast<size_t>(config.engine.tp) * static_cast<size_t>(config.engine.pp)),
      results(static_cast<size_t>(config.engine.pp)) {}

void Coordinator::State::on(SubmitEvent& event) {
  switch (life) {
    case Life::kLoading:
      return refuse(event.id, ErrorCode::kUnavailable, "the model is loading; retry later");
    case Life::kDraining:
      return refuse(event.id, ErrorCode::kUnavailable,
          "the server is draining and takes no new requests; retry elsewhere");
    case Life::kStopped:
    case Life::kFailed:
      return refuse(event.id, ErrorCode::kUnavailable, "the engine has ended; retry later");
    case Life::kServing: break;
  }
  Status status = scheduler->add(event.id, std::move(event.request));
  if (!status.ok()) {
    return emit({.id = event.id, .finish = FinishReason::kError, .status = std::move(status)});
  }
  open.insert(event.id);
}

void Coordinator::State::on(CancelEvent& event) {
  if (open.erase(event.id) == 0) return;
  scheduler->cancel(event.id);
  emit({.id = event.id, .finish = FinishReason::kCancelled});
}

void Coordinator::State::on(DrainEvent&) {
  if (life == Life::kLoading) {
    send_all(FrameType::kShutdown, {});
    finish(Life::kStopped, ExitCode::kOk, "drained before it was ready");
  } else if (life == Life::kServing) {
    life = Life::kDraining;
  }
}

void Coordinator::State::on(StopEvent& event) {
  if (over()) return;
  end_requests(event.reason);
  send_all(FrameType::kShutdown, {});
  finish(Life::kStopped, ExitCode::kOk, event.reason);
}

void Coordinator::State::plan_all() {
  if (!serving()) return;
  std::vector<Emission> failed;
  size_t num_failed = 0;
  do {
    num_failed = failed.size();
    while (auto plan = scheduler->plan(failed)) {
      if (expected.empty()) last_step = now;
      auto& slots = expected.emplace_back();
      for (const Row& row : plan->rows) {
        if (row.output != Output::kNone) slots.push_back(row.slot);
      }
      ++num_issued;
      send_all(FrameType::kPlan, encode(*plan));
    }
  } while (failed.size() > num_failed);  // whoever waited behind it may run now
  for (Emission& emission : failed) {
    open.erase(emission.id);
    emit(std::move(emission));
  }
  if (life == Life::kDraining && scheduler->idle()) {
    send_all(FrameType::kShutdown, {});
    finish(Life::kStopped, ExitCode::kOk, "drained");
  }
}

void Coordinator::State::refuse(RequestId id, ErrorCode code, std::string message) {
  emit({.id = id, .finish = FinishReason::kError, .status = {code, std::move(message), ""}});
}

void Coordinator::State::emit(Emission emission) { out.push_back(Emit{std::move(emission)}); }

void Coordinator::State::send_all(FrameType type, const Bytes& body) {
  out.push_back(SendAll{std::make_shared<const Bytes>(make_frame(type, config.epoch, body))});
}

void Coordinator::State::end_requests(const std::string& message) {
  for (const RequestId id : open) {
    scheduler->cancel(id);
    refuse(id, ErrorCode::kUnavailable, message);
  }
  open.clear();
}

void Coordinator::State::finish(Life end, ExitCode code, std::string message) {
  life = end;
  out.push_back(Finished{code, std::move(message)});
}

void Coordinator::State::lose(int rank, const std::string& reason, ExitCode code) {
  const std::string lost = fmt::format("worker rank {} was lost{}: {}", rank,
      life == Life::kLoading ? " while loading" : "", reason);
  end_requests(lost + "; retry");
  finish(Life::kFailed, life == Life::kLoading ? code : ExitCode::kWorkerLost, lost);
}

Coordinator::Coordinator(const CoordinatorConfig& config, Millis now)
    : state_(std::make_unique<State>(config, now)) {}
Coordinator::~Coordinator() = default;

void Coordinator::handle(Event event, Millis now, std::vector<Action>& actions) {
  State& s = *state_;
  s.now = now;
  if (!std::exchange(s.welcomed, true)) s.send_all(FrameType::kWelcome, encode(s.config.engine));
  std::visit([&s](auto& each) { s.on(each); }, event);
  s.plan_all();
  std::move(s.out.begin(), s.out.end(), std::back_inserter(actions));
  s.out.clear();
}

CoordinatorStats Coordinator::stats(Millis now) const {
  const State& s = *state_;
  CoordinatorStats stats;
  if (s.scheduler) stats.scheduler = s.scheduler->stats();
  stats.ready = s.scheduler.has_value();
  stats.healthy = s.serving() && s.all_beat(now);
  stats.compute_us = s.compute_us;
  stats.comm_us = s.comm_us;
  stats.idle_us = s.idle_us;
  return stats;
}

std::string Coordinator::check_integrity() const {
  const State& s = *state_;
  if (!s.scheduler) return s.open.empty() ? "" : "requests are open before the replica is ready";
  if (std::string broken = s.scheduler->check_integrity(); !broken.empty()) return broken;
  const SchedulerStats known = s.scheduler->stats();
  if (static_cast<int32_t>(s.open.size()) != known.running + known.waiting) {
    return fmt::format(
        "{} requests open, {} running, {} waiting", s.open.size(), known.running, known.waiting);
  }
  const auto in_flight = static_cast<int32_t>(s.expected.size());
  if (in_flight != s.scheduler->num_in_flight() ||
      s.results.back() + s.expected.size() != s.num_issued) {
    return fmt::format(
        "{} plans in flight, the scheduler says {}", in_flight, s.scheduler->num_in_flight());
  }
  return s.over() && !s.open.empty() ? "requests are open though the replica is over" : "";
}

}  // namespace millrace
