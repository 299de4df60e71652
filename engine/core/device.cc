#include "engine/core/device.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>

#include "engine/base/status.h"

namespace millrace {

namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kMapFrom = 1 << 20;

class CpuDevice final : public Device {
 public:
  std::string name() const override { return "cpu"; }

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
          fmt::format("no memory for {} ({:.1f} MiB): free some, lower --max-model-len or "
                      "--kv-cache-memory, or use more ranks",
              what, static_cast<double>(bytes) / (1 << 20)));
    }
    const auto free_memory = [rounded](void* p) {
      if (rounded >= kMapFrom) {
        ::munmap(p, static_cast<size_t>(rounded));
      } else {
        std::free(p);
      }
    };
    return Buffer(std::shared_ptr<void>(memory, free_memory), bytes);
  }

  void copy_to_device(const Buffer& to, int64_t offset, std::span<const uint8_t> from) override {
    CHECK(offset >= 0 && offset + static_cast<int64_t>(from.size()) <= to.bytes());
    std::memcpy(to.data() + offset, from.data(), from.size());
  }

  void copy_to_host(std::span<uint8_t> to, const Buffer& from, int64_t offset) override {
    CHECK(offset >= 0 && offset + static_cast<int64_t>(to.size()) <= from.bytes());
    std::memcpy(to.data(), from.data() + offset, to.size());
  }

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
};

}  // namespace

std::unique_ptr<Device> make_cpu_device() { return std::make_unique<CpuDevice>(); }

}  // namespace millrace
