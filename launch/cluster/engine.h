// The engine as the ways in see it: submit a request, get tokens on a callback. Owns the
// coordinator's thread, the links and, in modes 2 and 3, the processes. Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/coordinator/coordinator.h"
#include "engine/model/checkpoint.h"
#include "engine/protocol/engine_config.h"

namespace millrace {

struct LaunchConfig {
  EngineConfig engine;
  std::string hostfile;                  // mode 2 over several hosts; empty: this host
  std::vector<std::string> mpirun_args;  // further arguments of mpirun
  std::string log_level = "info";
  int32_t max_queue = 1024;
};

// Called on the coordinator's thread, in order, for one request: tokens, and at last one emission
// with finish != kNone. Must be quick and must not throw.
using EmissionCallback = std::function<void(const Emission&)>;

class Engine {
 public:
  // Starts the workers of the mode this process is in:
  //   1  tp * pp = 1 and not under mpirun: one worker thread in this process;
  //   2  tp * pp > 1 and not under mpirun: launches mpirun ... millrace worker;
  //   3  under mpirun: this is rank 0, its worker runs as a child process.
  // Blocks until every rank is ready, logging progress. Throws Error (nothing is left running).
  // `on_lost` is called once, on the coordinator's thread, if the replica ends unasked; every open
  // request got its end before.
  static std::unique_ptr<Engine> start(const LaunchConfig& config,
                                       std::function<void(const Finished&)> on_lost);
  // Stops: workers exit, children are reaped.
  ~Engine();
  Engine(const Engine&) = delete;

  // Never blocks. The callback gets an error emission when the scheduler refuses.
  RequestId submit(Request request, EmissionCallback callback);
  void cancel(RequestId id);
  CoordinatorStats stats() const;
  bool healthy() const;
  // Refuses new requests; true when all running ones ended within `timeout_ms`.
  bool drain(int64_t timeout_ms);

  const Checkpoint& model() const;
  // Longest prompt + output: the configured length, else the model's, bounded by the KV cache.
  int32_t max_model_len() const;

 private:
  struct Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The main of `millrace worker` and of ranks > 0 in mode 3: joins MPI, learns key and address,
// dials the coordinator, runs the worker. Returns the exit code.
int worker_main(int argc, char** argv);

}  // namespace millrace
