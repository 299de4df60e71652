#include "launch/sim/gpu.h"

#include <array>
#include <string>

#include "engine/base/status.h"

namespace millrace {

const Gpu& find_gpu(std::string_view name) {
  static constexpr std::array<Gpu, 6> kGpus = {{
      {"a100", 2.04e12, 312e12, 80e9, 300e9},
      {"b200", 8.0e12, 2250e12, 180e9, 900e9},
      {"h100", 3.35e12, 989e12, 80e9, 450e9},
      {"h200", 4.8e12, 989e12, 141e9, 450e9},
      {"l40s", 0.864e12, 362e12, 48e9, 32e9},
      {"rtx4090", 1.008e12, 165e12, 24e9, 32e9},
  }};
  std::string known;
  for (const Gpu& gpu : kGpus) {
    if (gpu.name == name) return gpu;
    known += (known.empty() ? "" : ", ") + std::string(gpu.name);
  }
  throw Error(ExitCode::kUsage, "--gpu {}: no figures of this GPU; there are {}", name, known);
}

}  // namespace millrace
