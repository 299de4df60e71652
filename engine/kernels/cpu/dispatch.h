// Which kernels this processor runs. Any thread.
#pragma once

#include <memory>
#include <span>
#include <string_view>

#include "engine/kernels/cpu/kernels.h"
#include "engine/kernels/ops.h"

namespace millrace {

// The levels this processor has, best first; "scalar" is always the last.
std::span<const CpuKernels* const> cpu_kernel_levels();

// CpuOps over one of them: what make_cpu_ops does with the first. `pool` outlives the result.
std::unique_ptr<Ops> make_cpu_ops_for(ThreadPool& pool, const CpuKernels& kernels);

}  // namespace millrace
