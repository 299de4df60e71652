// One rank: loads its slices, then obeys plans until its link ends. run_worker() is the whole life
// of a worker, the same in every mode; it is called on the rank's compute thread.
#pragma once

#include <functional>

#include "comm/device_comm.h"
#include "comm/link.h"
#include "engine/base/status.h"
#include "parallel/topology.h"

namespace millrace {

struct WorkerContext {
  int rank = 0;
  int local_rank = 0;               // on this host: which GPU
  int local_size = 1;               // ranks on this host, to share cores and memory
  CoordinatorLink* link = nullptr;  // outlives run_worker
  DeviceComm* tp_comm = nullptr;    // group of this stage's ranks; null when tp = 1
  PeerComm* peers = nullptr;        // all ranks; null when pp = 1
  // Rank 0's bytes on every rank, collective; null in one process. The CPU needs the two above, a
  // GPU this.
  std::function<Bytes(const Bytes&)> broadcast;
  // The process is this worker's own: when the coordinator is gone while the compute thread hangs
  // in a collective with a dead peer, the process ends itself.
  bool own_process = false;
};

// Waits for kWelcome, loads, sends kReady, waits for kStart, makes its cache and warms up, sends
// kStarted, then runs plans and sends results.
// Returns kOk after kShutdown or when the coordinator is gone; otherwise it has sent kFailed and
// returns the code. Throws nothing.
ExitCode run_worker(const WorkerContext& context);

}  // namespace millrace
