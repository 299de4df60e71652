#include "engine/worker/backend.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <thread>

#include "engine/base/status.h"
#include "engine/protocol/messages.h"

namespace millrace {

namespace {

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const BackendConfig& config)
      : tp_(config.tp_comm != nullptr ? *config.tp_comm : alone_),
        peers_(config.peers),
        device_(make_cpu_device()),
        pool_(cpu_threads(config.engine, config.local_size)),
        ops_(make_cpu_ops(pool_)) {}

  Device& device() override { return *device_; }
  Ops& ops() override { return *ops_; }
  DeviceComm& tp() override { return tp_; }
  PeerComm* peers() override { return peers_; }
  std::string description() const override {
    return fmt::format("{}, {} thread{}", cpu_kernel_name(), pool_.num_threads(),
        pool_.num_threads() == 1 ? "" : "s");
  }

 private:
  DeviceComm alone_;
  DeviceComm& tp_;
  PeerComm* peers_;
  std::unique_ptr<Device> device_;
  ThreadPool pool_;
  std::unique_ptr<Ops> ops_;
};

// Loaded once and never unloaded; null with `why` when it cannot be used.
const CudaPlugin* cuda_plugin(std::string* why) {
  static std::string reason;
  static const CudaPlugin* const plugin = []() -> const CudaPlugin* {
    std::error_code code;
    // Loading takes a while where there is nothing to find.
    if (!std::filesystem::exists("/dev/nvidiactl", code) &&
        !std::filesystem::exists("/dev/dxg", code)) {
      reason = "this machine has no NVIDIA GPU, or no driver for it";
      return nullptr;
    }
    const auto folder = std::filesystem::read_symlink("/proc/self/exe", code).parent_path();
    void* library = dlopen((folder / "libmillrace_cuda.so").c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      const char* error = dlerror();
      reason = fmt::format("the CUDA library does not load: {}", error != nullptr ? error : "?");
      return nullptr;
    }
    const auto* found = static_cast<const CudaPlugin*>(dlsym(library, "millrace_cuda_plugin"));
    if (found == nullptr || found->version != kProtocolVersion) {
      reason = "libmillrace_cuda.so belongs to another build of millrace";
      return nullptr;
    }
    if (found->device_count() < 1) {
      reason = "no NVIDIA GPU, or its driver is older than CUDA 13 needs";
      return nullptr;
    }
    return found;
  }();
  *why = reason;
  return plugin;
}

}  // namespace

int cpu_threads(const EngineConfig& config, int local_size) {
  if (config.threads > 0) return config.threads;
  const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  return std::max(1, cores / std::max(1, local_size));
}

DeviceKind choose_device(DeviceKind wanted, std::string* reason) {
  if (wanted == DeviceKind::kCpu) {
    *reason = "as asked";
    return wanted;
  }
  const CudaPlugin* plugin = cuda_plugin(reason);
  if (plugin == nullptr) return DeviceKind::kCpu;
  const int count = plugin->device_count();
  *reason = fmt::format("this host has {} GPU{}", count, count == 1 ? "" : "s");
  return DeviceKind::kCuda;
}

DeviceLimits measure_cuda_limits(bool with_peers) {
  std::string why;
  const CudaPlugin* plugin = cuda_plugin(&why);
  if (plugin == nullptr) throw Error(ExitCode::kLayout, why);
  return plugin->measure(with_peers);
}

std::unique_ptr<Backend> make_backend(const BackendConfig& config) {
  if (config.engine.device != DeviceKind::kCuda) return std::make_unique<CpuBackend>(config);
  std::string why;
  const CudaPlugin* plugin = cuda_plugin(&why);
  if (plugin == nullptr) {
    throw Error(ExitCode::kLayout,
        "rank {} cannot use a GPU: {}; use --device cpu, or see docs/cuda.md",
        config.topology.rank(), why);
  }
  return std::unique_ptr<Backend>(plugin->make(config));
}

}  // namespace millrace
