// Deaths and hangs seen by time: ranks that never get ready, fall silent, or stand still with work.
#include <fmt/format.h>

#include <algorithm>
#include <tuple>

#include "engine/coordinator/coordinator.h"

namespace millrace {

void Coordinator::on(TickEvent&) {
  const bool was_away = now_ - last_tick_ > config_.heartbeat_timeout / 2;
  last_tick_ = now_;
  if (was_away) {
    // This process itself was stopped or starved (Ctrl-Z, a paused container). What the ranks said
    // meanwhile may still lie unread: they get a whole timeout from here on.
    for (Rank& rank : ranks_) rank.last_heard = now_;
    last_step_ = now_;
  }
  if (loading()) watch_loading();
  if (serving()) {
    for (Emission& emission : scheduler_->expire(now_)) emit(std::move(emission));
  }
  const auto at_work = [this] { return serving() || life_ == Life::kStarting; };
  if (at_work()) watch_heartbeats();
  if (at_work()) watch_progress();
}

void Coordinator::watch_loading() {
  if (now_ - load_began_ <= config_.load_timeout) return;
  std::string missing;
  for (size_t rank = 0; rank < ranks_.size(); ++rank) {
    const Rank& each = ranks_[rank];
    if (life_ == Life::kLoading ? each.ready.has_value() : each.started) continue;
    missing += fmt::format("{}{}", missing.empty() ? "" : ", ", rank);
  }
  finish(Life::kFailed, ExitCode::kWorkerLost,
      fmt::format("not ready after {} s: rank {}; look at its host and at what it logged",
          config_.load_timeout / 1000, missing));
}

bool Coordinator::all_beat(Millis at) const {
  return std::all_of(ranks_.begin(), ranks_.end(),
      [&](const Rank& rank) { return at - rank.last_heard <= config_.heartbeat_timeout; });
}

void Coordinator::watch_heartbeats() {
  if (all_beat(now_)) return;
  const auto silent = std::ranges::min_element(ranks_, {}, &Rank::last_heard);
  lose(static_cast<int>(silent - ranks_.begin()),
      fmt::format("no heartbeat for {} s", (now_ - silent->last_heard) / 1000));
}

// A rank without work, or that has started before others, stands still by right, and so does one
// that waits for a slow neighbour. But the lanes are few: when one hangs, soon nobody moves. Then
// the one to name is the furthest behind; of several at the same step the earliest stage (the later
// ones wait for it), and within a stage the one with the fewest layers done.
void Coordinator::watch_progress() {
  const bool starting = life_ == Life::kStarting;
  if (!starting && expected_.empty()) return;
  Millis newest = last_step_;
  for (const Rank& rank : ranks_) newest = std::max(newest, rank.last_moved);
  if (now_ - newest <= config_.hang_timeout) return;
  const auto key = [this](const Rank& rank) {
    const int number = static_cast<int>(&rank - ranks_.data());
    return std::tuple(
        rank.started, rank.heartbeat.steps_done, stage_of(number), rank.heartbeat.progress, number);
  };
  const auto stuck = std::ranges::min_element(ranks_, {}, key);
  lose(static_cast<int>(stuck - ranks_.begin()),
      fmt::format("it hangs in {}: no rank moved for {} s",
          starting ? "its warm-up" : fmt::format("step {}", stuck->heartbeat.steps_done),
          (now_ - newest) / 1000));
}

}  // namespace millrace
