#include "tests/engine/kernels/cpu_backend.h"

namespace millrace {

std::unique_ptr<TestBackend> make_cpu_backend(const CpuKernels& kernels) {
  const auto pool = std::make_shared<ThreadPool>(2);
  return std::make_unique<TestBackend>(make_cpu_device(),
      [pool, &kernels](const AttentionShape&) { return make_cpu_ops_for(*pool, kernels); });
}

std::vector<BackendFactory> test_backends() {
  std::vector<BackendFactory> all;
  for (const CpuKernels* kernels : cpu_kernel_levels()) {
    all.push_back({kernels->name, [kernels] { return make_cpu_backend(*kernels); }});
  }
  return all;
}

}  // namespace millrace
