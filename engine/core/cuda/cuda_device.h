// A GPU as a Device: one compute stream that every verb of this process enqueues on.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "engine/core/device.h"

namespace millrace {

// Throws Error(kWorkerLost) with CUDA's words and `what` unless `result` is cudaSuccess.
void check_cuda(cudaError_t result, const char* what);

class CudaDevice : public Device {
 public:
  // Makes this GPU the calling thread's current one as well: kernels are launched on it.
  virtual cudaStream_t stream() const = 0;
  virtual int num_sms() const = 0;
  virtual int compute_capability() const = 0;  // 90 for sm_90
  // Destroys all graphs: before the communicators that they captured.
  virtual void drop_graphs() = 0;
};

// GPU number `index` of this process. act: kF32, kF16 or kBF16. Throws Error(kLayout) when there
// is no such GPU or its driver is too old.
std::unique_ptr<CudaDevice> make_cuda_device(int index, DType act);

}  // namespace millrace
