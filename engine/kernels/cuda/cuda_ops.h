// Ops on a GPU: every verb enqueues its kernels on the device's compute stream and returns.
#pragma once

#include <memory>
#include <string>

#include "engine/core/cuda/cuda_device.h"
#include "engine/kernels/ops.h"

namespace millrace {

// What workspaces are sized for.
struct CudaOpsLimits {
  int32_t max_sequences = 0;  // rows of a step
  int32_t max_tokens = 0;     // of a step
  AttentionShape shape;       // of this rank
  std::string gemm_cache;     // file of measured GEMM algorithms; empty: none
  bool tune = false;  // measure shapes that the file lacks, on their first use before warm-up
};

// `device` outlives the result.
std::unique_ptr<Ops> make_cuda_ops(CudaDevice& device, const CudaOpsLimits& limits);

}  // namespace millrace
