// The engine of this process: the pure Coordinator inside a thread with sockets, clock and child
// processes. Made and destroyed on the main thread; everything else is thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

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
  bool healthy() const override;

  const Checkpoint& model() const;
  // Longest prompt + output: the configured length, else the model's, bounded by the KV cache.
  int32_t max_model_len() const;
  // What rank 0 measured, with EngineConfig::bench.
  const std::vector<Figure>& figures() const;

 private:
  struct Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace millrace
