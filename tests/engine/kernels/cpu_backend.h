// CpuOps over one level of kernels, for tests. Memory of its device is the host's.
#pragma once

#include "engine/kernels/cpu/cpu_ops.h"
#include "tests/engine/kernels/backend.h"

namespace millrace {

std::unique_ptr<TestBackend> make_cpu_backend(const CpuKernels& kernels);

}  // namespace millrace
