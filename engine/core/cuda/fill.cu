#include "engine/core/cuda/fill.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "engine/base/hash.h"
#include "engine/core/cuda/cuda_device.h"

namespace millrace::cuda {

namespace {

// The method of Box and Muller (1958) over a hash of the index, as on the CPU.
template <typename T>
__global__ void fill_normal_kernel(T* to, int64_t count, float deviation, uint64_t seed) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    const uint64_t bits = hash_combine(seed, static_cast<uint64_t>(i));
    const float unit = (static_cast<float>(static_cast<uint32_t>(bits >> 32)) + 0.5f) * 0x1p-32f;
    const float turn = static_cast<float>(static_cast<uint32_t>(bits)) * 0x1p-32f;
    to[i] = static_cast<T>(sqrtf(-2 * logf(unit)) * cospif(2 * turn) * deviation);
  }
}

}  // namespace

void fill_normal(const TensorView& to, float deviation, uint64_t seed, cudaStream_t stream) {
  CHECK(to.contiguous());
  const int64_t count = to.count();
  if (count == 0) return;
  constexpr int kThreads = 256;
  const auto blocks = static_cast<int>(std::min<int64_t>((count + kThreads - 1) / kThreads, 8192));
  if (to.dtype == DType::kF32) {
    fill_normal_kernel<<<blocks, kThreads, 0, stream>>>(to.as<float>(), count, deviation, seed);
  } else if (to.dtype == DType::kF16) {
    fill_normal_kernel<<<blocks, kThreads, 0, stream>>>(to.as<__half>(), count, deviation, seed);
  } else {
    CHECK(to.dtype == DType::kBF16, "noise as {}", dtype_info(to.dtype).name);
    fill_normal_kernel<<<blocks, kThreads, 0, stream>>>(
        to.as<__nv_bfloat16>(), count, deviation, seed);
  }
  check_cuda(cudaGetLastError(), "filling weights with noise");
}

}  // namespace millrace::cuda
