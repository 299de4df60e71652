// Deaths and hangs seen by time: ranks that never get ready, fall silent, or stand still with work.
#include <fmt/format.h>

#include <algorithm>
#include <tuple>

#include "engine/coordinator/state.h"

namespace millrace {

void Coordinator::State::on(TickEvent&) {
  const bool was_away = now - last_tick > config.heartbeat_timeout / 2;
  last_tick = now;
  if (was_away) {
    // This process itself was stopped or starved (Ctrl-Z, a paused container). What the ranks said
    // meanwhile may still lie unread: they get a whole timeout from here on.
    for (Rank& rank : ranks) rank.last_heard = now;
    last_step = now;
  }
  if (life == Life::kLoading) watch_loading();
  if (serving()) watch_heartbeats();
  if (serving()) watch_progress();
}

void Coordinator::State::watch_loading() {
  if (now - load_began <= config.load_timeout) return;
  std::string missing;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    if (!ranks[rank].ready) missing += fmt::format("{}{}", missing.empty() ? "" : ", ", rank);
  }
  finish(Life::kFailed, ExitCode::kWorkerLost,
      fmt::format("not ready after {} s: rank {}; look at its host and at what it logged",
          config.load_timeout / 1000, missing));
}

bool Coordinator::State::all_beat(Millis at) const {
  return std::all_of(ranks.begin(), ranks.end(),
      [&](const Rank& rank) { return at - rank.last_heard <= config.heartbeat_timeout; });
}

void Coordinator::State::watch_heartbeats() {
  if (all_beat(now)) return;
  const auto silent = std::min_element(ranks.begin(), ranks.end(),
      [](const Rank& a, const Rank& b) { return a.last_heard < b.last_heard; });
  lose(static_cast<int>(silent - ranks.begin()),
      fmt::format("no heartbeat for {} s", (now - silent->last_heard) / 1000));
}

// A rank without work stands still by right, and so does one that waits for a slow neighbour. But
// the lanes are few: when one hangs, soon nobody moves. Then the one to name is the furthest
// behind; of several at the same step the earliest stage (the later ones wait for it), and within a
// stage the one with the fewest layers done.
void Coordinator::State::watch_progress() {
  if (expected.empty()) return;
  Millis newest = last_step;
  for (const Rank& rank : ranks) newest = std::max(newest, rank.last_moved);
  if (now - newest <= config.hang_timeout) return;
  const auto key = [this](const Rank& rank) {
    const int number = static_cast<int>(&rank - ranks.data());
    return std::tuple(rank.heartbeat.steps_done, stage_of(number), rank.heartbeat.progress, number);
  };
  const auto stuck = std::min_element(
      ranks.begin(), ranks.end(), [&](const Rank& a, const Rank& b) { return key(a) < key(b); });
  lose(static_cast<int>(stuck - ranks.begin()),
      fmt::format("it hangs in step {}: no rank moved for {} s", stuck->heartbeat.steps_done,
          (now - newest) / 1000));
}

}  // namespace millrace
