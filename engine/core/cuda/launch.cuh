// How every kernel here is launched: where the GPU can, its blocks take their places while the
// kernel before it still runs (programmatic dependent launch), so that a step of hundreds of short
// kernels does not pay for each one's start.
#pragma once

#include <cuda_runtime.h>

#include "engine/core/cuda/cuda_device.h"

namespace millrace::cuda {

// Lets the next kernel take its places. From here until wait_for_inputs() a kernel may read only
// what no kernel writes, as weights, and must write nothing.
__device__ __forceinline__ void admit_next() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// Returns when all kernels before this one have ended and what they wrote is there. Every block
// calls it, so that a kernel's end means the end of all before it.
__device__ __forceinline__ void wait_for_inputs() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The first statement of a kernel that has nothing to do before its inputs are there.
__device__ __forceinline__ void begin_kernel() {
  admit_next();
  wait_for_inputs();
}

// Enqueues a kernel that begins as above. `what` names it in errors. shared: dynamic shared memory
// in bytes.
template <typename... Params, typename... Args>
void launch(const char* what, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared,
    cudaStream_t stream, const Args&... args) {
  static const bool overlaps = [] {
    int device = 0, major = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) ==
               cudaSuccess &&
           major >= 9;
  }();
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = overlaps ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, Params(args)...), what);
}

}  // namespace millrace::cuda
