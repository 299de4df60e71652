// What a rank computes and talks with: a device, its verbs, and the data plane. Two kinds: the CPU
// with MPI, and a GPU with NCCL, whose code lies in libmillrace_cuda.so beside the program and is
// loaded when it is used.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "comm/device_comm.h"
#include "engine/base/bytes.h"
#include "engine/core/device.h"
#include "engine/kernels/ops.h"
#include "engine/protocol/engine_config.h"
#include "parallel/topology.h"

namespace millrace {

struct BackendConfig {
  Topology topology{1, 1, 0};
  int local_rank = 0;
  int local_size = 1;  // ranks on this host, to share cores
  EngineConfig engine;
  DType activation = DType::kF32;
  // This rank's shapes, for workspaces.
  AttentionShape attention;
  int64_t hidden_size = 0;
  int64_t vocab_size = 0;
  // The launch plane's groups (CPU), and its broadcast from rank 0 (GPU); null in one process.
  DeviceComm* tp_comm = nullptr;
  PeerComm* peers = nullptr;
  std::function<Bytes(const Bytes&)> broadcast;
};

// All but check() from the compute thread.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual Device& device() = 0;
  virtual Ops& ops() = 0;
  virtual DeviceComm& tp() = 0;
  virtual PeerComm* peers() = 0;                    // null when pp = 1
  virtual int64_t comm_bytes() const { return 0; }  // that they took of the device
  virtual std::string description() const = 0;      // "avx512, 2 threads"
  virtual void check() {}  // throws Error when a peer or the device failed; any thread
};

// Compute threads of a CPU rank, of which the host has `local_size`.
int cpu_threads(const EngineConfig& config, int local_size);

// Throws Error(kLayout) when there is no such device.
std::unique_ptr<Backend> make_backend(const BackendConfig& config);

// What "auto" comes to on this host: a GPU when the CUDA library loads and finds one. `reason` says
// why in a few words.
DeviceKind choose_device(DeviceKind wanted, std::string* reason);

// What a device can do at best, measured: what figures are held against.
struct DeviceLimits {
  double read_bytes_per_s = 0;
  double flops = 0;             // of a large bf16 product of random numbers; 0: not measured
  double peer_bytes_per_s = 0;  // copied to a neighbour, one way; 0: not measured
};
// Of GPU 0 of this host, by the CUDA library, while nothing else runs on it; copies to GPU 1 only
// if asked. Throws Error.
DeviceLimits measure_cuda_limits(bool with_peers);

// What libmillrace_cuda.so exports, as `millrace_cuda_plugin`.
struct CudaPlugin {
  uint32_t version;  // kProtocolVersion of the build
  int (*device_count)();
  Backend* (*make)(const BackendConfig&);
  DeviceLimits (*measure)(bool with_peers);
};

}  // namespace millrace
