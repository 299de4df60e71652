#include "launch/cluster/replica_shell.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <chrono>

#include "engine/base/check.h"
#include "engine/base/log.h"

namespace millrace {

namespace {

constexpr auto kTickInterval = std::chrono::milliseconds(200);

Millis now() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
      std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

ReplicaShell::ReplicaShell(const CoordinatorConfig& config, boost::asio::io_context& io,
    std::function<void(const Finished&)> on_lost,
    std::function<void(int rank, const StepTrace&)> on_trace)
    : timer_(io),
      coordinator_(config, now()),
      on_lost_(std::move(on_lost)),
      on_trace_(std::move(on_trace)),
      links_(static_cast<size_t>(config.engine.tp) * static_cast<size_t>(config.engine.pp)) {}

LinkEvents ReplicaShell::link_events() {
  return {
      .on_frame = [this](int rank, Bytes frame) { on_frame(rank, std::move(frame)); },
      .on_closed =
          [this](int rank, const std::string& reason) {
            if (!over_) handle(LinkClosedEvent{rank, reason});
          },
  };
}

// What is only looked at changes no plan: it does not reach the coordinator, which would refuse it
// where nobody had asked.
void ReplicaShell::on_frame(int rank, Bytes frame) {
  FrameHeader header;
  if (!on_trace_ || !decode(frame, &header) || header.type != FrameType::kTrace) {
    return handle(FrameEvent{rank, std::move(frame)});
  }
  StepTrace trace;
  if (decode(std::span<const uint8_t>(frame).subspan(kFrameHeaderBytes), &trace)) {
    on_trace_(rank, trace);
  }
}

void ReplicaShell::add_link(int rank, std::unique_ptr<WorkerLink> link) {
  if (over_) return link->close();
  for (const auto& frame : backlog_) link->send(frame);
  links_[static_cast<size_t>(rank)] = std::move(link);
  const auto num_links =
      std::count_if(links_.begin(), links_.end(), [](const auto& l) { return l != nullptr; });
  if (num_links == std::ssize(links_)) backlog_.clear();
  log::debug("rank {} has dialled", rank);
  const std::lock_guard lock(mutex_);
  view_.num_links = static_cast<int>(num_links);
}

void ReplicaShell::start_ticking() {
  handle(TickEvent{});
  tick();
}

void ReplicaShell::tick() {
  timer_.expires_after(kTickInterval);
  timer_.async_wait([this](const boost::system::error_code& error) {
    if (error) return;
    handle(TickEvent{});
    tick();
  });
}

void ReplicaShell::submit(RequestId id, Request request, EmissionCallback callback) {
  const std::lock_guard lock(mutex_);
  arrivals_.push_back({id, std::move(request), std::move(callback)});
  if (arrivals_.size() > 1) return;
  boost::asio::post(timer_.get_executor(), [this] { take_arrivals(); });
}

void ReplicaShell::take_arrivals() {
  std::vector<Arrival> arrived;
  {
    const std::lock_guard lock(mutex_);
    arrived.swap(arrivals_);
  }
  for (Arrival& each : arrived) {
    callbacks_.emplace(each.id, std::move(each.callback));
    handle(SubmitEvent{each.id, std::move(each.request), /*more=*/&each != &arrived.back()});
  }
}

void ReplicaShell::cancel(RequestId id) {
  callbacks_.erase(id);
  handle(CancelEvent{id});
}

void ReplicaShell::handle(Event event) {
  std::vector<Action> actions;
  coordinator_.handle(std::move(event), now(), actions);
  for (Action& action : actions) {
    std::visit([this](auto& each) { perform(each); }, action);
  }
  publish();
}

void ReplicaShell::perform(SendAll& action) {
  bool complete = true;
  for (const auto& link : links_) {
    if (link != nullptr) link->send(action.frame);
    complete &= link != nullptr;
  }
  if (!complete && !over_) backlog_.push_back(action.frame);
}

void ReplicaShell::perform(Emit& action) {
  const auto found = callbacks_.find(action.emission.id);
  if (found == callbacks_.end()) return;
  found->second(action.emission);
  if (action.emission.finish != FinishReason::kNone) callbacks_.erase(found);
}

void ReplicaShell::perform(BecameReady& action) {
  const std::lock_guard lock(mutex_);
  view_.ready = std::move(action);
  changed_.notify_all();
}

void ReplicaShell::perform(Finished& action) {
  CHECK(!over_, "{}", action.message);
  over_ = true;
  for (const auto& link : links_) {
    if (link != nullptr) link->close();
  }
  bool lost = false;
  {
    const std::lock_guard lock(mutex_);
    lost = view_.ready.has_value() && !end_expected_ && action.exit_code != ExitCode::kOk;
    view_.finished = action;
    view_.stats.healthy = false;
  }
  changed_.notify_all();
  if (lost) on_lost_(action);
}

void ReplicaShell::publish() {
  CoordinatorStats stats = coordinator_.stats(now());
  const std::lock_guard lock(mutex_);
  view_.stats = std::move(stats);
}

ReplicaShell::View ReplicaShell::view() const {
  const std::lock_guard lock(mutex_);
  return view_;
}

CoordinatorStats ReplicaShell::stats() const {
  const std::lock_guard lock(mutex_);
  return view_.stats;
}

bool ReplicaShell::wait(std::chrono::milliseconds limit, bool finished_only) const {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, limit,
      [&] { return view_.finished.has_value() || (!finished_only && view_.ready.has_value()); });
}

void ReplicaShell::expect_end() {
  const std::lock_guard lock(mutex_);
  end_expected_ = true;
}

}  // namespace millrace
