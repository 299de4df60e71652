// Inside the room: the kernel behind CudaDevice::fill_normal.
#pragma once

#include <cuda_runtime_api.h>

#include "engine/core/tensor.h"

namespace millrace::cuda {

// Enqueues Device::fill_normal. to: contiguous, f32, f16 or bf16, device memory.
void fill_normal(const TensorView& to, float deviation, uint64_t seed, cudaStream_t stream);

}  // namespace millrace::cuda
