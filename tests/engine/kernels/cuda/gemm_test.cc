// The two ways that a GPU's `linear` may take, each for itself.
#include "engine/kernels/cuda/gemm.h"

#include "engine/core/cuda/cuda_device.h"
#include "tests/engine/kernels/backend.h"

namespace millrace {
namespace {

using reference::Matrix;
using reference::Weights;

class GemmTest : public BackendTest {
 protected:
  void check(int64_t m, int64_t n, int64_t k, DType out_dtype, bool skinny) {
    const DType act = backend_->act();
    cudaStream_t stream = dynamic_cast<CudaDevice&>(backend_->device()).stream();
    const Matrix x = noise(m, k);
    const Matrix bias = noise(1, n);
    const Weights w = random_.weights(act, n, k);
    const Tensor device_x = backend_->upload(x);
    const Tensor device_w = backend_->upload(w);
    const Tensor device_bias = backend_->upload_vector(bias, act);
    const Tensor out = output(m, n, out_dtype);
    if (skinny) {
      if (!cuda::skinny_gemm_supports(device_x.view, device_w.view, out.view)) return;
      cuda::skinny_gemm(device_x.view, device_w.view, device_bias.view, out.view, stream);
    } else {
      cuda::Gemm gemm(stream, "");
      gemm.tune(device_x.view, device_w.view, device_bias.view, out.view);
      gemm.run(device_x.view, device_w.view, device_bias.view, out.view);
    }
    const Matrix got = backend_->download(out);
    for (int64_t j = 0; j < n; ++j) {
      const std::vector<double> row = w.values(j);
      for (int64_t i = 0; i < m; ++i) {
        const reference::Dot dot = reference::dot(x.row(i), row);
        const double want = dot.value + bias.row(0)[j];
        ASSERT_NEAR(got.row(i)[j], want, backend_->error(want, dot.magnitude, 0, out_dtype))
            << "m " << m << " n " << n << " k " << k << " at " << i << "," << j;
      }
    }
  }
};

TEST_P(GemmTest, FewRows) {
  if (backend_->act() == DType::kF32) GTEST_SKIP() << "16-bit types only";
  for (const DType out : {DType::kF32, backend_->act()}) {
    for (int64_t m = 1; m <= 16; ++m) {
      for (const auto& [n, k] : {std::pair{1, 8}, {7, 64}, {33, 1000}, {257, 576}, {96, 4096}}) {
        check(m, n, k, out, /*skinny=*/true);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(GemmTest, TunedShapes) {
  for (const int64_t m : {1, 5, 16, 100, 256}) {
    for (const auto& [n, k] : {std::pair{64, 64}, {130, 96}, {31, 17}, {96, 2048}}) {
      check(m, n, k, backend_->act(), /*skinny=*/false);
      check(m, n, k, DType::kF32, /*skinny=*/false);
      if (HasFatalFailure()) return;
    }
  }
}

MILLRACE_ON_ALL_BACKENDS(GemmTest);

}  // namespace
}  // namespace millrace
