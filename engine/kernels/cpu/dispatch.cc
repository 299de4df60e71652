#include "engine/kernels/cpu/cpu_ops.h"

#include <vector>

namespace millrace {

std::span<const CpuKernels* const> cpu_kernel_levels() {
  static const auto levels = [] {
    std::vector<const CpuKernels*> found;
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
      if (__builtin_cpu_supports("avx512vnni")) found.push_back(&kernels_avx512_vnni());
      found.push_back(&kernels_avx512());
    }
    if (avx2) found.push_back(&kernels_avx2());
#elif defined(__aarch64__)
    found.push_back(&kernels_neon());
#endif
    found.push_back(&kernels_portable());
    return found;
  }();
  return levels;
}

std::unique_ptr<Ops> make_cpu_ops(ThreadPool& pool) {
  return make_cpu_ops_for(pool, *cpu_kernel_levels().front());
}

const char* cpu_kernel_name() { return cpu_kernel_levels().front()->name; }

}  // namespace millrace
