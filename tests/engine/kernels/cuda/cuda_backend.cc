// CudaOps on GPU 0 with each activation dtype.
#include "engine/base/status.h"
#include "engine/core/cuda/cuda_device.h"
#include "engine/kernels/cuda/cuda_ops.h"
#include "tests/engine/kernels/backend.h"

namespace millrace {

namespace {

std::unique_ptr<TestBackend> make_cuda_backend(DType act) {
  std::unique_ptr<CudaDevice> device;
  try {
    device = make_cuda_device(0, act);
  } catch (const Error& error) {
    if (error.exit_code() != ExitCode::kLayout) throw;
    return nullptr;  // no GPU here
  }
  CudaDevice& gpu = *device;
  return std::make_unique<TestBackend>(std::move(device), [&gpu](const AttentionShape& shape) {
    CudaOpsLimits limits;
    limits.max_sequences = kTestSequences;
    limits.max_tokens = kTestTokens;
    limits.shape = shape;
    return make_cuda_ops(gpu, limits);
  });
}

}  // namespace

std::vector<BackendFactory> test_backends() {
  std::vector<BackendFactory> all;
  for (const DType act : {DType::kF32, DType::kF16, DType::kBF16}) {
    all.push_back({std::string(dtype_info(act).name), [act] { return make_cuda_backend(act); }});
  }
  return all;
}

}  // namespace millrace
