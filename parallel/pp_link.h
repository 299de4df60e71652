// Pipeline parallelism's hand-off, used by the executor and never by a model: hidden states to
// the next stage, sampled ids from the last stage back to the first. Compute thread only.
//
// Buffers belong to lanes: what plan n sends is kept until plan n + L of the same lane sends.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include "comm/device_comm.h"
#include "engine/core/tensor.h"
#include "parallel/topology.h"

namespace millrace {

class PpLink {
 public:
  // `peers` may be null when pp = 1.
  PpLink(const Topology& topology, PeerComm* peers);

  // Stage s -> s + 1. hidden: act [T, H], contiguous, stays unchanged until send_hidden of the
  // same lane is called again (which first waits for the former one).
  void send_hidden(int lane, const TensorView& hidden);
  void receive_hidden(const TensorView& hidden);
  // Waits until what this lane sent before has left its buffers; call before writing into them.
  void wait_lane(int lane);

  // Last stage -> first stage, in plan order, one id per row with output, in device memory; sent
  // ids stay unchanged until send_ids of the same lane is called again. Only with pp > 1.
  void send_ids(int lane, std::span<const int32_t> ids);
  void receive_ids(std::span<int32_t> ids);

  // Time spent blocked since the last call.
  std::chrono::nanoseconds take_wait_time();

 private:
  Topology topology_;
  PeerComm* peers_;
  struct Lane {
    PeerComm::SendToken hidden_token = -1;
    PeerComm::SendToken ids_token = -1;
  };
  std::vector<Lane> lanes_;
  std::chrono::nanoseconds waited_{0};
};

}  // namespace millrace
