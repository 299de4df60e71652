// The engine of this process: the pure Coordinator inside a thread with sockets, clock and child
// processes. Made and destroyed on the main thread; everything else is thread-safe.
#pragma once

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/steady_timer.hpp>
#include <condition_variable>
#include <mutex>
#include <unordered_map>

#include "engine/coordinator/coordinator.h"
#include "engine/model/checkpoint.h"
#include "launch/api/engine_api.h"
#include "launch/cluster/launcher.h"

namespace millrace {

class Engine final : public EngineApi {
 public:
  using OnLost = std::function<void(const Finished&)>;

  // Starts the workers of the mode this process is in:
  //   1  tp * pp = 1 and not under mpirun: one worker thread in this process;
  //   2  tp * pp > 1 and not under mpirun: launches mpirun ... millrace worker;
  //   3  under mpirun: this is rank 0, its worker runs as a child process.
  // Blocks until every rank is ready, logging progress. Throws Error (nothing is left running).
  // `on_lost` is called once, on the coordinator's thread, if the replica ends unasked; every open
  // request got its end before. It must not throw.
  // `checkpoint`: the configured model, when it is open already.
  static std::unique_ptr<Engine> start(const LaunchConfig& config, OnLost on_lost,
      std::shared_ptr<const Checkpoint> checkpoint = nullptr);
  // Open requests end as unavailable, workers exit, children are reaped.
  ~Engine() override;
  Engine(const Engine&) = delete;

  RequestId submit(Request request, EmissionCallback callback) override;
  void cancel(RequestId id) override;
  CoordinatorStats stats() const override;
  bool healthy() const override { return stats().healthy; }

  const Checkpoint& model() const { return *checkpoint_; }
  // Longest prompt + output: the configured length, else the model's, bounded by the KV cache.
  int32_t max_model_len() const;
  // What rank 0 measured, with EngineConfig::bench.
  const std::vector<Figure>& figures() const { return ready_.ranks.front().figures; }

 private:
  struct Arrival {
    RequestId id;
    Request request;
    EmissionCallback callback;
  };
  struct View {  // what other threads may know
    CoordinatorStats stats;
    std::optional<BecameReady> ready;
    std::optional<Finished> finished;
    int num_links = 0;
  };

  Engine(const LaunchConfig& config, OnLost on_lost, std::shared_ptr<const Checkpoint> checkpoint);
  void wait_until_ready();
  View view() const;
  // Waits until the replica is ready or finished (or only finished); false after `limit`.
  bool wait(std::chrono::milliseconds limit, bool finished_only) const;

  // On the coordinator's thread.
  void add_link(int rank, std::unique_ptr<WorkerLink> link);
  void on_frame(int rank, Bytes frame);
  void take_arrivals();
  void tick();
  void handle(Event event);
  void perform(SendAll& action);
  void perform(Emit& action);
  void perform(BecameReady& action);
  void perform(Finished& action);

  const LaunchConfig config_;
  const LaunchMode mode_;
  const std::shared_ptr<const Checkpoint> checkpoint_;
  const OnLost on_lost_;
  boost::asio::io_context io_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_{
      io_.get_executor()};
  boost::asio::steady_timer timer_{io_};
  Coordinator coordinator_;
  std::vector<std::unique_ptr<WorkerLink>> links_;     // by rank, null until it has dialled
  std::vector<std::shared_ptr<const Bytes>> backlog_;  // sent before every rank had dialled
  std::unordered_map<RequestId, EmissionCallback> callbacks_;
  bool over_ = false;  // Finished was performed
  std::unique_ptr<Launcher> launcher_;
  std::atomic<RequestId> next_id_{1};
  BecameReady ready_;

  mutable std::mutex mutex_;  // of what follows
  mutable std::condition_variable changed_;
  std::vector<Arrival> arrivals_;
  View view_;
  bool end_expected_ = false;
  std::thread thread_;  // the coordinator's
};

}  // namespace millrace
