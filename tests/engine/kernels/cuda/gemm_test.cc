// The ways that a GPU's `linear` may take, each for itself.
#include "engine/kernels/cuda/gemm.h"

#include "engine/core/cuda/cuda_device.h"
#include "tests/engine/kernels/backend.h"

namespace millrace {
namespace {

using reference::Matrix;
using reference::Weights;

enum class Way { kTuned, kSkinny, kStream };

class GemmTest : public BackendTest {
 protected:
  void check(int64_t m, int64_t n, int64_t k, DType out_dtype, Way way) {
    const DType act = backend_->act();
    cudaStream_t stream = dynamic_cast<CudaDevice&>(backend_->device()).stream();
    const Matrix x = noise(m, k);
    const Matrix bias = noise(1, n);
    const Weights w = random_.weights(act, n, k);
    const Tensor device_x = backend_->upload(x);
    const Tensor device_w = backend_->upload(w);
    const Tensor device_bias = backend_->upload_vector(bias, act);
    const Tensor out = output(m, n, out_dtype);
    if (way == Way::kSkinny) {
      if (!cuda::skinny_gemm_supports(device_x.view, device_w.view, out.view)) return;
      cuda::skinny_gemm(
          device_x.view, device_w.view, device_bias.view, out.view, /*adds=*/false, stream);
    } else if (way == Way::kStream) {
      if (!cuda::stream_gemm_supports(device_x.view, device_w.view, out.view, /*gated=*/false)) {
        return;
      }
      const Buffer space = backend_->device().allocate(cuda::stream_workspace_bytes(), "test");
      cuda::stream_gemm(device_x.view, device_w.view, device_bias.view, out.view,
          /*gate=*/std::nullopt,
          /*adds=*/false, {space.data(), 132}, stream);
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
        check(m, n, k, out, Way::kSkinny);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Tiles that are cut along K and tiles that are not, whole ones and remainders.
TEST_P(GemmTest, Streams) {
  if (backend_->act() == DType::kF32) GTEST_SKIP() << "16-bit types only";
  for (const DType out : {DType::kF32, backend_->act()}) {
    for (const int64_t m : {1, 8, 9, 16, 17, 32, 50, 64, 65, 128}) {
      for (const auto& [n, k] :
          {std::pair{16, 8}, {128, 64}, {144, 1000}, {1040, 2048}, {576, 1536}, {6000, 72}}) {
        check(m, n, k, out, Way::kStream);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(GemmTest, TunedShapes) {
  for (const int64_t m : {1, 5, 16, 100, 256}) {
    for (const auto& [n, k] : {std::pair{64, 64}, {130, 96}, {31, 17}, {96, 2048}}) {
      check(m, n, k, backend_->act(), Way::kTuned);
      check(m, n, k, DType::kF32, Way::kTuned);
      if (HasFatalFailure()) return;
    }
  }
}

MILLRACE_ON_ALL_BACKENDS(GemmTest);

}  // namespace
}  // namespace millrace
