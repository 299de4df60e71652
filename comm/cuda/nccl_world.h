// The data plane between GPUs: NCCL communicators by topology, and an own one-shot all-reduce over
// CUDA IPC for small tensor-parallel sums. Everything is enqueued; nothing blocks the host.
#pragma once

#include <functional>
#include <memory>

#include "comm/device_comm.h"
#include "engine/base/bytes.h"
#include "engine/core/cuda/cuda_device.h"

namespace millrace {

struct NcclLayout {
  int tp = 1, pp = 1, rank = 0;  // rank = pp_rank * tp + tp_rank
  int timeout_s = 60;            // of starting up
  // What tp().all_gather_cols gives at most: f32 [T, sum of cols]. 0: it is not called.
  int64_t max_gather_bytes = 0;
};

class NcclWorld {
 public:
  // Collective over all ranks. `broadcast` gives every rank the bytes of rank 0 (the launch plane).
  // `device` outlives this. Throws Error naming the rank when a peer does not come in time.
  using Broadcast = std::function<Bytes(const Bytes&)>;
  // Communicators of NCCL's blocking kind: with the other, each verb would start a thread.
  static std::unique_ptr<NcclWorld> start(
      const NcclLayout& layout, CudaDevice& device, const Broadcast& broadcast);
  virtual ~NcclWorld() = default;
  // The tensor-parallel group of this rank's stage; its verbs are enqueued on the compute stream
  // and may be captured.
  virtual DeviceComm& tp() = 0;
  // Transfers between neighbouring stages and from the last to the first, each direction on a
  // communicator and stream of its own, joined to the compute stream by events: send() waits (on
  // the device) for what the compute stream has enqueued, wait_send() and receive() make the
  // compute stream wait; a receive, too, begins after what the compute stream has enqueued, for its
  // buffer may be in use. Bytes are device memory. Tags: 1 to the next stage, 2 from the last to
  // the first.
  virtual PeerComm& peers() = 0;
  // Any thread: throws Error(kWorkerLost) when NCCL reports an asynchronous error.
  virtual void check() = 0;
};

}  // namespace millrace
