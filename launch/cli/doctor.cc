// `millrace doctor`: what this host offers and lacks, a line for each with the remedy. GPUs are
// asked through the library of NVIDIA's driver (NVML), found at run time.
#include <dlfcn.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <array>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <thread>

#include "comm/mpi_world.h"
#include "engine/kernels/ops.h"
#include "engine/worker/backend.h"
#include "launch/cli/answer.h"
#include "launch/cli/commands.h"
#include "launch/cluster/launcher.h"
#include "launch/cluster/process.h"

namespace millrace {

namespace {

constexpr double kGib = 1 << 30;
constexpr auto kMpiTime = std::chrono::seconds(30);
constexpr int kCudaNeeded = 13000;             // as cudaDriverGetVersion counts
constexpr int kPeerRead = 0, kPeerNvlink = 2;  // nvmlGpuP2PCapsIndex_t
enum class Level { kOk, kWarn, kFail };
constexpr std::array<const char*, 3> kLevelNames = {"ok", "warn", "fail"};

struct Finding {
  Level level = Level::kOk;
  std::string what, value;
  std::string remedy;  // empty when all is well
};
using Findings = std::vector<Finding>;

Finding judge(bool well, std::string what, std::string value, std::string remedy,
    Level otherwise = Level::kWarn) {
  return {well ? Level::kOk : otherwise, std::move(what), std::move(value),
      well ? "" : std::move(remedy)};
}

void add_host(Findings& findings) {
  const auto cores = std::thread::hardware_concurrency();
  double quota = 0, period = 0;  // "max" is no number: no limit
  std::ifstream("/sys/fs/cgroup/cpu.max") >> quota >> period;
  const double allowed = period > 0 ? quota / period : cores;
  findings.push_back(judge(allowed >= cores, "cores",
      fmt::format("{} of {}, time of {:.1f}", cores, sysconf(_SC_NPROCESSORS_ONLN), allowed),
      fmt::format(
          "threads beyond their time stand still: --threads {}, or raise the cgroup's limit",
          std::max(1, static_cast<int>(allowed)))));
  const double free = static_cast<double>(make_cpu_device()->free_bytes()) / kGib;
  findings.push_back(judge(free >= 1, "memory", fmt::format("{:.1f} GiB free", free),
      "free some, or raise the cgroup's limit: `millrace fit MODEL` tells what a model needs"));
  const std::string kernels = cpu_kernel_name();
  findings.push_back(judge(kernels != "scalar", "instructions", kernels + " kernels",
      "a CPU with AVX2 is several times as fast; a virtual machine may hide it"));
}

void add_mpi(Findings& findings) {
  if (launched_by_mpi()) return;  // it starts no job within its own
  std::optional<int> status;
  std::string value = "2 ranks start";
  try {
    Process process({.argv = mpirun_arguments(
                         {.num_ranks = 2, .program = "/bin/true", .as_root = geteuid() == 0}),
        .own_group = true,
        .death_signal = SIGTERM});
    status = process.wait_for(kMpiTime);
    if (status != 0) value = status ? describe_exit(*status) : "does not end within 30 s";
  } catch (const Error& error) {
    value = error.what();
  }
  findings.push_back(judge(status == 0, "mpirun", value,
      "needed for several ranks alone: install Open MPI (apt install openmpi-bin), put it first in "
      "PATH, and see what `mpirun -np 2 true` says"));
}

void add_limits(Findings& findings) {
  rlimit files{}, locked{};
  getrlimit(RLIMIT_NOFILE, &files);
  getrlimit(RLIMIT_MEMLOCK, &locked);
  const auto text = [](rlim_t limit) {
    return limit == RLIM_INFINITY ? "unlimited" : fmt::format("{}", limit);
  };
  findings.push_back(judge(files.rlim_cur >= 4096, "open files", text(files.rlim_cur),
      "each client of `serve` holds one: ulimit -n 65536"));
  // Page-locked memory of a GPU does not count; what a network card reads does.
  findings.push_back(
      judge(locked.rlim_cur == RLIM_INFINITY || !std::filesystem::exists("/sys/class/infiniband"),
          "locked memory", text(locked.rlim_cur), "InfiniBand needs more: ulimit -l unlimited"));
  struct statvfs shm {};
  statvfs("/dev/shm", &shm);
  const double free = static_cast<double>(shm.f_bavail) * static_cast<double>(shm.f_frsize) / kGib;
  findings.push_back(judge(free >= 1, "/dev/shm", fmt::format("{:.2f} GiB free", free),
      "ranks of a host talk through it: docker run --shm-size=1g or --ipc=host"));
}

// The calls of nvml.h by name; true when one worked.
template <typename... Arguments>
bool nvml(const char* name, Arguments... arguments) {
  static void* const library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return false;
  const auto function = reinterpret_cast<int (*)(Arguments...)>(dlsym(library, name));
  return function != nullptr && function(arguments...) == 0;
}

void add_links(const std::vector<void*>& gpus, Findings& findings) {
  std::array<int, 3> pairs{};  // by NVLink, PCIe, the host
  const auto joined = [](void* a, void* b, int way) {
    int status = -1;
    return nvml("nvmlDeviceGetP2PStatus", a, b, way, &status) && status == 0;
  };
  for (size_t i = 0; i < gpus.size(); ++i) {
    for (size_t j = i + 1; j < gpus.size(); ++j) {
      ++pairs[joined(gpus[i], gpus[j], kPeerNvlink) ? 0
              : joined(gpus[i], gpus[j], kPeerRead) ? 1
                                                    : 2];
    }
  }
  findings.push_back(judge(pairs[2] == 0, "links",
      fmt::format("pairs of GPUs: {} by NVLink, {} by PCIe, {} through the host's memory", pairs[0],
          pairs[1], pairs[2]),
      "keep -tp among joined GPUs (CUDA_VISIBLE_DEVICES) and use -pp between them"));
}

void add_gpus(Findings& findings) {
  struct Memory {
    unsigned long long total, free, used;
  };
  const bool works = nvml("nvmlInit_v2");
  if (!works && !std::filesystem::exists("/dev/nvidiactl")) {
    return findings.push_back({Level::kOk, "GPUs", "none; the CPU is used", ""});
  }
  char version[96] = "does not answer";
  int cuda = 0;
  unsigned count = 0;
  nvml("nvmlSystemGetDriverVersion", version, 96u);
  nvml("nvmlSystemGetCudaDriverVersion_v2", &cuda);
  findings.push_back(judge(cuda >= kCudaNeeded, "driver",
      fmt::format("{}, CUDA {}.{}", version, cuda / 1000, cuda % 1000 / 10),
      "CUDA 13 needs driver 580 or later; in a container, `--gpus all`; or use --device cpu",
      Level::kFail));
  nvml("nvmlDeviceGetCount_v2", &count);
  std::vector<void*> gpus;
  for (unsigned i = 0; i < count; ++i) {
    void* gpu = nullptr;
    char name[96] = "?";
    Memory memory{};
    if (!nvml("nvmlDeviceGetHandleByIndex_v2", i, &gpu)) continue;
    gpus.push_back(gpu);
    nvml("nvmlDeviceGetName", gpu, name, 96u);
    nvml("nvmlDeviceGetMemoryInfo", gpu, &memory);
    findings.push_back(judge(memory.free >= memory.total / 10 * 9, fmt::format("GPU {}", i),
        fmt::format("{}, {} MiB free of {}", name, memory.free >> 20, memory.total >> 20),
        "another program holds some: `nvidia-smi` names it"));
  }
  if (gpus.size() > 1) add_links(gpus, findings);
  std::string why;
  const bool loads = choose_device(DeviceKind::kAuto, &why) == DeviceKind::kCuda;
  findings.push_back(judge(loads, "CUDA library", why,
      "build with -DMILLRACE_CUDA=on, with NCCL (docs/cuda.md), or use --device cpu",
      Level::kFail));
}

}  // namespace

ExitCode run_doctor(const Options& options) {
  Findings findings;
  for (const auto add : {add_host, add_mpi, add_gpus, add_limits}) add(findings);
  bool well = true;
  boost::json::array list;
  std::string text;
  for (const Finding& f : findings) {
    well = well && f.level != Level::kFail;
    const char* level = kLevelNames[static_cast<size_t>(f.level)];
    list.push_back(boost::json::object{
        {"level", level}, {"what", f.what}, {"value", f.value}, {"remedy", f.remedy}});
    text += fmt::format(
        "{:4}  {}: {}{}{}\n", level, f.what, f.value, f.remedy.empty() ? "" : " - ", f.remedy);
  }
  if (options.json) {
    text = boost::json::serialize(boost::json::object{{"ok", well}, {"findings", list}}) + "\n";
  }
  write_stdout(text);
  return well ? ExitCode::kOk : ExitCode::kFailure;
}

}  // namespace millrace
