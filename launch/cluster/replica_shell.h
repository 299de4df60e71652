// The thin shell around the pure Coordinator: events come in on one io_context, actions go out to
// links and callbacks. Every function but the constructor runs on the io_context's thread, unless
// it says otherwise.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "comm/link.h"
#include "engine/coordinator/coordinator.h"
#include "engine/protocol/trace.h"
#include "launch/api/engine_api.h"

namespace millrace {

class ReplicaShell {
 public:
  ReplicaShell(const CoordinatorConfig& config, boost::asio::io_context& io,
      std::function<void(const Finished&)> on_lost,
      std::function<void(int rank, const StepTrace&)> on_trace = nullptr);

  // What the links report; to be given to whoever makes them.
  LinkEvents link_events();
  void add_link(int rank, std::unique_ptr<WorkerLink> link);
  void start_ticking();
  // Any thread. Requests that come together are planned together.
  void submit(RequestId id, Request request, EmissionCallback callback);
  void cancel(RequestId id);
  // Drain, stop, ticks.
  void handle(Event event);

  // What other threads may know; thread-safe.
  struct View {
    CoordinatorStats stats;
    std::optional<BecameReady> ready;
    std::optional<Finished> finished;
    int num_links = 0;
  };
  View view() const;
  CoordinatorStats stats() const;
  // Waits until the replica is ready or finished (or only finished); false after `limit`.
  bool wait(std::chrono::milliseconds limit, bool finished_only) const;
  // From now on its end is no loss.
  void expect_end();

 private:
  void perform(SendAll& action);
  void perform(Emit& action);
  void perform(BecameReady& action);
  void perform(Finished& action);
  void take_arrivals();
  void on_frame(int rank, Bytes frame);
  void tick();
  void publish();

  boost::asio::steady_timer timer_;
  Coordinator coordinator_;
  std::function<void(const Finished&)> on_lost_;
  std::function<void(int rank, const StepTrace&)> on_trace_;
  std::vector<std::unique_ptr<WorkerLink>> links_;     // by rank, null until it has dialled
  std::vector<std::shared_ptr<const Bytes>> backlog_;  // sent before every rank had dialled
  std::unordered_map<RequestId, EmissionCallback> callbacks_;
  bool over_ = false;  // Finished was performed

  struct Arrival {
    RequestId id;
    Request request;
    EmissionCallback callback;
  };

  mutable std::mutex mutex_;
  std::vector<Arrival> arrivals_;
  mutable std::condition_variable changed_;
  View view_;                  // guarded by mutex_
  bool end_expected_ = false;  // guarded by mutex_
};

}  // namespace millrace
