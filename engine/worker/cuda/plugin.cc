// libmillrace_cuda.so's one export: a rank's backend on a GPU.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include "comm/cuda/nccl_world.h"
#include "engine/core/cuda/cuda_device.h"
#include "engine/kernels/cuda/cuda_ops.h"
#include "engine/kernels/cuda/gemm.h"
#include "engine/kernels/cuda/kernels.h"
#include "engine/protocol/messages.h"
#include "engine/worker/backend.h"

namespace millrace {

namespace {

// Read when a context is made: every stream gets a queue of its own, or a waiting transfer would
// hold up kernels behind it.
void set_environment() {
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
  setenv("NCCL_LAUNCH_ORDER_IMPLICIT", "1", 0);
  setenv("NCCL_NVLS_ENABLE", "0", 0);
}

// $XDG_CACHE_HOME/millrace/gemm, or below $HOME/.cache; empty when neither is there.
std::string gemm_cache_file(const CudaDevice& device) {
  std::filesystem::path folder;
  if (const char* cache = getenv("XDG_CACHE_HOME"); cache != nullptr && *cache != 0) {
    folder = cache;
  } else if (const char* home = getenv("HOME"); home != nullptr && *home != 0) {
    folder = std::filesystem::path(home) / ".cache";
  } else {
    return "";
  }
  folder /= "millrace";
  std::error_code code;
  std::filesystem::create_directories(folder, code);
  return code ? "" : (folder / fmt::format("gemm-sm{}", device.compute_capability())).string();
}

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const BackendConfig& config)
      : device_(make_cuda_device(config.local_rank, config.activation)),
        ops_(make_cuda_ops(*device_, {.max_sequences = config.engine.max_num_seqs,
                                         .max_tokens = config.engine.max_num_batched_tokens,
                                         .shape = config.attention,
                                         .gemm_cache = gemm_cache_file(*device_),
                                         .tune = config.engine.tune})) {
    const Topology& topology = config.topology;
    NcclLayout layout;
    layout.tp = topology.tp();
    layout.pp = topology.pp();
    layout.rank = topology.rank();
    layout.timeout_s = config.engine.timeout_s;
    layout.max_gather_bytes = config.engine.max_num_seqs * config.vocab_size * int64_t{4};
    const int64_t before = device_->used_bytes();
    world_ = NcclWorld::start(layout, *device_, config.broadcast);
    comm_bytes_ = device_->used_bytes() - before;
  }

  Device& device() override { return *device_; }
  Ops& ops() override { return *ops_; }
  DeviceComm& tp() override { return world_->tp(); }
  PeerComm* peers() override { return &world_->peers(); }
  int64_t comm_bytes() const override { return comm_bytes_; }
  std::string description() const override {
    return fmt::format(
        "sm_{}, {}", device_->compute_capability(), dtype_info(device_->activation_dtype()).name);
  }
  void check() override { world_->check(); }

 private:
  std::unique_ptr<CudaDevice> device_;
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<NcclWorld> world_;
  int64_t comm_bytes_ = 0;
};

int device_count() {
  set_environment();
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

// Median of several timed runs, in seconds.
template <typename Work>
double time_of(Device& device, const Work& work) {
  std::vector<double> times;
  const auto begin = device.make_event(), end = device.make_event();
  for (int i = 0; i < 9; ++i) {
    begin->record();
    work();
    end->record();
    device.synchronize();
    times.push_back(end->ms_since(*begin) * 1e-3);
  }
  std::nth_element(times.begin(), times.begin() + 4, times.end());
  return times[4];
}

// Bytes per second that GPU 0 copies to GPU 1; 0 without a second one.
double peer_bandwidth(CudaDevice& device) {
  constexpr int64_t kBytes = int64_t{256} << 20;
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count < 2) return 0;
  const Buffer from = device.allocate(kBytes, "the measured buffer");
  void* to = nullptr;
  check_cuda(cudaSetDevice(1), "cudaSetDevice");
  check_cuda(cudaMalloc(&to, kBytes), "the measured buffer");
  check_cuda(cudaSetDevice(0), "cudaSetDevice");
  cudaDeviceEnablePeerAccess(1, 0);
  cudaGetLastError();  // a refusal is an answer: the copy then goes through the host
  const double seconds = time_of(device, [&] {
    check_cuda(cudaMemcpyPeerAsync(to, 1, from.data(), 0, kBytes, device.stream()),
        "copying between GPUs");
  });
  cudaFree(to);
  return static_cast<double>(kBytes) / seconds;
}

DeviceLimits measure_limits(bool with_peers) {
  constexpr int64_t kSize = 8192, kReadBytes = int64_t{4} << 30;
  const auto device = make_cuda_device(0, DType::kBF16);
  DeviceLimits limits;
  {
    const Buffer buffer = device->allocate(kReadBytes, "the measured buffer");
    const Buffer sum = device->allocate(4, "a sum");
    limits.read_bytes_per_s = static_cast<double>(kReadBytes) / time_of(*device, [&] {
      cuda::read_all(buffer.data(), kReadBytes, reinterpret_cast<uint32_t*>(sum.data()),
          device->num_sms(), device->stream());
    });
  }
  if (with_peers) limits.peer_bytes_per_s = peer_bandwidth(*device);
  const Tensor x = device->tensor(DType::kBF16, {kSize, kSize}, "a matrix");
  const Tensor w = device->tensor(DType::kBF16, {kSize, kSize}, "a matrix");
  const Tensor out = device->tensor(DType::kBF16, {kSize, kSize}, "a matrix");
  device->fill_normal(x.view, 1, 1);
  device->fill_normal(w.view, 1, 2);
  cuda::Gemm gemm(device->stream(), "");
  limits.flops = 2.0 * kSize * kSize * kSize /
                 time_of(*device, [&] { gemm.run(x.view, w.view, TensorView(), out.view); });
  return limits;
}

Backend* make_cuda_backend(const BackendConfig& config) {
  set_environment();
  return new CudaBackend(config);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const CudaPlugin millrace_cuda_plugin = {
    kProtocolVersion, device_count, make_cuda_backend, measure_limits};

}  // namespace millrace
