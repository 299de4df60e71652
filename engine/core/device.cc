#include "engine/core/device.h"

#include <fmt/format.h>
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <numbers>

#include "engine/base/hash.h"
#include "engine/base/status.h"

namespace millrace {

namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kMapFrom = 1 << 20;

class CpuEvent final : public DeviceEvent {
 public:
  void record() override { time_ = std::chrono::steady_clock::now(); }
  bool done() override { return true; }
  double ms_since(DeviceEvent& earlier) override {
    const auto passed = time_ - static_cast<CpuEvent&>(earlier).time_;
    return std::chrono::duration<double, std::milli>(passed).count();
  }

 private:
  std::chrono::steady_clock::time_point time_;
};

class CpuDevice : public Device {
 public:
  CpuDevice() { malloc_trim(0); }  // of what reading a tokenizer left behind
  std::string name() const override { return "cpu"; }
  DType activation_dtype() const override { return DType::kF32; }
  DType weight_dtype(DType stored) const override { return stored; }

  Buffer allocate(int64_t bytes, const std::string& what) override {
    CHECK(bytes >= 0);
    const int64_t rounded =
        (std::max<int64_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
    // Large memory comes from mmap: zeroed by the kernel page by page as it is touched, so a KV
    // cache costs what its sequences use.
    void* memory = MAP_FAILED;
    if (rounded >= kMapFrom) {
      memory = ::mmap(nullptr, static_cast<size_t>(rounded), PROT_READ | PROT_WRITE,
          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    } else if (void* small = std::aligned_alloc(kAlignment, static_cast<size_t>(rounded))) {
      memory = std::memset(small, 0, static_cast<size_t>(rounded));
    }
    if (memory == MAP_FAILED) {
      throw Error(ExitCode::kOutOfMemory,
          "no memory for {} ({:.1f} MiB): free some, lower --max-model-len or "
          "--kv-cache-memory, or use more ranks",
          what, static_cast<double>(bytes) / (1 << 20));
    }
    const auto free_memory = [rounded](void* p) {
      if (rounded >= kMapFrom) {
        ::munmap(p, static_cast<size_t>(rounded));
      } else {
        std::free(p);
      }
    };
    return counted(std::shared_ptr<void>(memory, free_memory), bytes);
  }

  Buffer allocate_host(int64_t bytes, const std::string& what) override {
    return allocate(bytes, what);
  }

  void copy_to_device(void* to, std::span<const uint8_t> from) override {
    std::copy(from.begin(), from.end(), static_cast<uint8_t*>(to));
  }
  void copy_to_host(std::span<uint8_t> to, const void* from) override {
    std::copy_n(static_cast<const uint8_t*>(from), to.size(), to.begin());
  }
  void begin_copy(void* to, std::span<const uint8_t> from) override { copy_to_device(to, from); }
  void end_copies() override {}
  void enqueue_copy_in(void* to, std::span<const uint8_t> from) override {
    copy_to_device(to, from);
  }
  void enqueue_copy_out(std::span<uint8_t> to, const void* from) override {
    copy_to_host(to, from);
  }
  void enqueue_copy(void* to, const void* from, int64_t bytes) override {
    copy_to_host({static_cast<uint8_t*>(to), static_cast<size_t>(bytes)}, from);
  }

  // The method of Box and Muller (1958) over a hash of the index.
  void fill_normal(const TensorView& to, float deviation, uint64_t seed) override {
    CHECK(to.contiguous());
    const int64_t width = dtype_bytes(to.dtype, 1);
    for (int64_t i = 0; i < to.count(); ++i) {
      const uint64_t bits = hash_combine(seed, static_cast<uint64_t>(i));
      const double radius =
          std::sqrt(-2 * std::log((static_cast<double>(bits >> 32) + 0.5) * 0x1p-32));
      const double turn = static_cast<double>(bits & 0xffffffff) * 0x1p-32;
      const float value =
          static_cast<float>(radius * std::cos(2 * std::numbers::pi * turn)) * deviation;
      narrow({&value, 1}, to.dtype, to.data + i * width);
    }
  }

  std::unique_ptr<DeviceEvent> make_event() override { return std::make_unique<CpuEvent>(); }
  void synchronize() override {}
  void capture(int64_t /*key*/, const std::function<void()>& /*body*/) override {}
  bool replay(int64_t /*key*/) override { return false; }
  bool asynchronous() const override { return false; }
  double kv_share() const override { return kCpuKvShare; }

  // What the kernel thinks can be had without swapping, and the limit of our cgroup if lower.
  int64_t free_bytes() const override {
    int64_t available = int64_t{sysconf(_SC_AVPHYS_PAGES)} * sysconf(_SC_PAGESIZE);
    std::ifstream meminfo("/proc/meminfo");
    for (std::string key, rest; meminfo >> key && std::getline(meminfo, rest);) {
      if (key == "MemAvailable:") available = std::strtoll(rest.c_str(), nullptr, 10) * 1024;
    }
    std::ifstream limit_file("/sys/fs/cgroup/memory.max");
    std::ifstream used_file("/sys/fs/cgroup/memory.current");
    int64_t limit = 0, used = 0;
    if (limit_file >> limit && used_file >> used) available = std::min(available, limit - used);
    return std::max<int64_t>(available, 0);
  }
  int64_t used_bytes() const override {
    int64_t all = 0, resident = 0;
    std::ifstream("/proc/self/statm") >> all >> resident;
    return resident * sysconf(_SC_PAGESIZE);
  }
};

class CountingDevice final : public CpuDevice {
 public:
  CountingDevice(std::optional<DType> gpu, int64_t used) : gpu_(gpu), used_(used) {}
  DType activation_dtype() const override { return gpu_.value_or(DType::kF32); }
  DType weight_dtype(DType stored) const override {
    return gpu_ ? gpu_weight_dtype(stored, *gpu_) : stored;
  }
  Buffer allocate(int64_t bytes, const std::string& /*what*/) override {
    return counted(nowhere(), bytes);
  }
  // The CPU has one kind of memory.
  Buffer allocate_host(int64_t bytes, const std::string& what) override {
    return gpu_ ? Buffer(nowhere(), bytes) : allocate(bytes, what);
  }
  void copy_to_device(void* /*to*/, std::span<const uint8_t> /*from*/) override {}
  bool asynchronous() const override { return gpu_.has_value(); }
  double kv_share() const override { return gpu_ ? kGpuKvShare : kCpuKvShare; }
  int64_t used_bytes() const override { return used_ + allocated_bytes(); }
  bool only_counts() const override { return true; }

 private:
  // An address that is not null.
  static std::shared_ptr<void> nowhere() {
    alignas(kAlignment) static uint8_t place;
    return {std::shared_ptr<void>(), &place};
  }
  const std::optional<DType> gpu_;
  const int64_t used_;
};

}  // namespace

std::unique_ptr<Device> make_cpu_device() { return std::make_unique<CpuDevice>(); }

std::unique_ptr<Device> make_counting_device(std::optional<DType> gpu_activation, int64_t used) {
  return std::make_unique<CountingDevice>(gpu_activation, used);
}

}  // namespace millrace
