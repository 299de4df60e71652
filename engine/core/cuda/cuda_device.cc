#include "engine/core/cuda/cuda_device.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "engine/base/status.h"
#include "engine/core/cuda/fill.h"

namespace millrace {

void check_cuda(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  throw Error(ExitCode::kWorkerLost, "{}: CUDA says {} ({})", what, cudaGetErrorString(result),
      cudaGetErrorName(result));
}

namespace {

// A thread's current GPU is its own affair: every entry point that another thread may be the first
// to call binds it.
void bind(int index) {
  thread_local int bound = -1;
  if (bound == index) return;
  check_cuda(cudaSetDevice(index), "cudaSetDevice");
  bound = index;
}

// What a thread copies with, so that loader threads do not wait for each other.
struct CopyLane {
  CopyLane() {
    check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    check_cuda(cudaEventCreateWithFlags(&compute, cudaEventDisableTiming), "cudaEventCreate");
  }
  ~CopyLane() {
    cudaEventDestroy(compute);
    cudaStreamDestroy(stream);
  }
  CopyLane(const CopyLane&) = delete;
  // Behind what the compute stream holds now, so that a copy never overtakes the kernels that were
  // enqueued before it.
  cudaStream_t behind(cudaStream_t compute_stream) const {
    check_cuda(cudaEventRecord(compute, compute_stream), "cudaEventRecord");
    check_cuda(cudaStreamWaitEvent(stream, compute, 0), "cudaStreamWaitEvent");
    return stream;
  }
  cudaStream_t stream = nullptr;
  cudaEvent_t compute = nullptr;
};

CopyLane& copy_lane() {
  thread_local CopyLane lane;
  return lane;
}

class CudaEvent final : public DeviceEvent {
 public:
  CudaEvent(int index, cudaStream_t stream) : index_(index), stream_(stream) {
    check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDefault), "cudaEventCreate");
  }
  ~CudaEvent() override { cudaEventDestroy(event_); }

  void record() override { check_cuda(cudaEventRecord(event_, stream_), "cudaEventRecord"); }
  bool done() override {
    bind(index_);
    const cudaError_t result = cudaEventQuery(event_);
    if (result == cudaErrorNotReady) return false;
    check_cuda(result, "a step on the GPU failed");
    return true;
  }
  double ms_since(DeviceEvent& earlier) override {
    float ms = 0;
    check_cuda(cudaEventElapsedTime(&ms, static_cast<CudaEvent&>(earlier).event_, event_),
        "cudaEventElapsedTime");
    return ms;
  }

 private:
  int index_;
  cudaStream_t stream_;
  cudaEvent_t event_ = nullptr;
};

class CudaDeviceImpl final : public CudaDevice {
 public:
  CudaDeviceImpl(int index, DType act, const cudaDeviceProp& properties)
      : index_(index),
        act_(act),
        name_(fmt::format("cuda:{} {}", index, properties.name)),
        num_sms_(properties.multiProcessorCount),
        compute_capability_(properties.major * 10 + properties.minor) {
    bind(index_);
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    free_at_start_ = free_bytes();
  }
  ~CudaDeviceImpl() override {
    drop_graphs();
    cudaStreamDestroy(stream_);
  }

  std::string name() const override { return name_; }
  DType activation_dtype() const override { return act_; }
  DType weight_dtype(DType stored) const override { return gpu_weight_dtype(stored, act_); }
  bool asynchronous() const override { return true; }
  double kv_share() const override { return kGpuKvShare; }
  int num_sms() const override { return num_sms_; }
  int compute_capability() const override { return compute_capability_; }
  cudaStream_t stream() const override {
    bind(index_);
    return stream_;
  }

  Buffer allocate(int64_t bytes, const std::string& what) override {
    CHECK(bytes >= 0);
    bind(index_);
    const size_t size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
    void* memory = nullptr;
    check_allocation(cudaMalloc(&memory, size), bytes, what, "GPU memory");
    // An error of cudaFree is that of an earlier kernel and has been told by then.
    std::shared_ptr<void> owner(memory, [](void* p) { cudaFree(p); });
    const cudaStream_t lane = copy_lane().stream;
    check_cuda(cudaMemsetAsync(memory, 0, size, lane), "zeroing GPU memory");
    check_cuda(cudaStreamSynchronize(lane), "zeroing GPU memory");
    return counted(std::move(owner), bytes);
  }

  Buffer allocate_host(int64_t bytes, const std::string& what) override {
    CHECK(bytes >= 0);
    bind(index_);
    const size_t size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
    void* memory = nullptr;
    check_allocation(cudaHostAlloc(&memory, size, cudaHostAllocPortable | cudaHostAllocMapped),
        bytes, what, "page-locked memory");
    std::memset(memory, 0, size);
    return Buffer(std::shared_ptr<void>(memory, [](void* p) { cudaFreeHost(p); }), bytes);
  }

  void copy_to_device(void* to, std::span<const uint8_t> from) override {
    copy(to, from.data(), from.size());
    end_copies();
  }
  void copy_to_host(std::span<uint8_t> to, const void* from) override {
    copy(to.data(), from, to.size());
    end_copies();
  }
  void begin_copy(void* to, std::span<const uint8_t> from) override {
    copy(to, from.data(), from.size());
  }
  void end_copies() override {
    bind(index_);
    check_cuda(cudaStreamSynchronize(copy_lane().stream), "copying between host and GPU");
  }
  void enqueue_copy_in(void* to, std::span<const uint8_t> from) override {
    enqueue_copy(to, from.data(), static_cast<int64_t>(from.size()));
  }
  void enqueue_copy_out(std::span<uint8_t> to, const void* from) override {
    enqueue_copy(to.data(), from, static_cast<int64_t>(to.size()));
  }
  void enqueue_copy(void* to, const void* from, int64_t bytes) override {
    if (bytes == 0) return;
    check_cuda(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, stream()),
        "cudaMemcpyAsync");
  }

  void fill_normal(const TensorView& to, float deviation, uint64_t seed) override {
    cuda::fill_normal(to, deviation, seed, stream());
  }

  std::unique_ptr<DeviceEvent> make_event() override {
    return std::make_unique<CudaEvent>(index_, stream());
  }
  void synchronize() override {
    check_cuda(cudaStreamSynchronize(stream()), "work on the GPU failed");
  }

  void capture(int64_t key, const std::function<void()>& body) override {
    // Thread local: what other threads (loaders, NCCL's own) do meanwhile is none of its business.
    check_cuda(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal),
        "cudaStreamBeginCapture");
    body();
    cudaGraph_t graph = nullptr;
    check_cuda(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture");
    cudaGraphExec_t executable = nullptr;
    const cudaError_t result = cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
    check_cuda(result, "cudaGraphInstantiate");
    CHECK(graphs_.emplace(key, executable).second, "graph {} is captured twice", key);
  }
  bool replay(int64_t key) override {
    const auto it = graphs_.find(key);
    if (it == graphs_.end()) return false;
    check_cuda(cudaGraphLaunch(it->second, stream()), "cudaGraphLaunch");
    return true;
  }
  void drop_graphs() override {
    for (const auto& [key, graph] : graphs_) cudaGraphExecDestroy(graph);
    graphs_.clear();
  }

  int64_t free_bytes() const override {
    bind(index_);
    size_t free = 0, total = 0;
    check_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    return static_cast<int64_t>(free);
  }
  int64_t used_bytes() const override { return free_at_start_ - free_bytes(); }

 private:
  static void check_allocation(
      cudaError_t result, int64_t bytes, const std::string& what, const char* kind) {
    if (result == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // not sticky: clears it
      throw Error(ExitCode::kOutOfMemory,
          "no {} for {} ({:.1f} MiB): free some, lower --max-model-len or "
          "--kv-cache-memory, or use more ranks",
          kind, what, static_cast<double>(bytes) / (1 << 20));
    }
    check_cuda(result, "allocating memory");
  }

  // On this thread's lane.
  void copy(void* to, const void* from, size_t bytes) {
    if (bytes == 0) return;
    bind(index_);
    const cudaStream_t lane = copy_lane().behind(stream_);
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, lane), "cudaMemcpyAsync");
  }

  int index_;
  DType act_;
  std::string name_;
  int num_sms_;
  int compute_capability_;
  cudaStream_t stream_ = nullptr;
  int64_t free_at_start_ = 0;
  std::map<int64_t, cudaGraphExec_t> graphs_;
};

}  // namespace

std::unique_ptr<CudaDevice> make_cuda_device(int index, DType act) {
  CHECK(act == DType::kF32 || act == DType::kF16 || act == DType::kBF16, "activations as {}",
      dtype_info(act).name);
  int count = 0;
  const cudaError_t result = cudaGetDeviceCount(&count);
  if (result != cudaSuccess) {
    throw Error(ExitCode::kLayout,
        "no NVIDIA GPU can be used here: {}; install a driver for CUDA {}.{} or newer, "
        "or use --device cpu",
        cudaGetErrorString(result), CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
  }
  if (index < 0 || index >= count) {
    throw Error(ExitCode::kLayout,
        "this rank wants GPU {} of its host, which shows {}: start fewer ranks per "
        "host, show more GPUs (CUDA_VISIBLE_DEVICES), or use --device cpu",
        index, count);
  }
  cudaDeviceProp properties;
  check_cuda(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  if (properties.major < 8) {
    throw Error(ExitCode::kLayout,
        "GPU {} ({}) has compute capability {}.{}, 8.0 is the least that works: use "
        "another one (CUDA_VISIBLE_DEVICES), or --device cpu",
        index, properties.name, properties.major, properties.minor);
  }
  return std::make_unique<CudaDeviceImpl>(index, act, properties);
}

}  // namespace millrace
