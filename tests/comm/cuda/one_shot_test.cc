// The one-shot sums on one GPU: its ranks are streams, whose kernels run side by side.
#include "comm/cuda/one_shot.h"

#include <chrono>
#include <cmath>
#include <thread>

#include "engine/core/cuda/cuda_device.h"
#include "tests/engine/kernels/backend.h"

namespace millrace {
namespace {

using reference::Matrix;
using reference::rounded;

class OneShotTest : public BackendTest {
 protected:
  void TearDown() override {
    for (const cudaStream_t stream : streams_) cudaStreamDestroy(stream);
  }

  // alone: as where no other stream's kernel has to run for a sum to end.
  void start(int size, bool alone) {
    abort_ = backend_->device().allocate_host(4, "test");
    for (int r = 0; r < size; ++r) {
      check_cuda(
          cudaStreamCreateWithFlags(&streams_.emplace_back(), cudaStreamNonBlocking), "test");
      inboxes_.push_back(backend_->device().allocate(one_shot_inbox_bytes(size), "test"));
      epochs_.push_back(backend_->device().allocate(4 * cuda::kOneShotBlocks, "test"));
      cuda::OneShotGroup& group = groups_.emplace_back();
      group.rank = r;
      group.size = size;
      group.alone = alone;
      group.epochs = reinterpret_cast<uint32_t*>(epochs_.back().data());
      group.abort = reinterpret_cast<const uint32_t*>(abort_.data());
    }
    for (cuda::OneShotGroup& group : groups_) {
      for (size_t r = 0; r < groups_.size(); ++r) group.inboxes[r] = inboxes_[r].data();
    }
  }
  // That all ranks' blocks fit on the GPU at once, which is what these tests need of it.
  bool fits(int64_t blocks) const {
    const int sms = dynamic_cast<CudaDevice&>(backend_->device()).num_sms();
    return blocks * static_cast<int64_t>(groups_.size()) <= 2 * sms;
  }

  // A hang becomes a failure.
  void wait() {
    using Clock = std::chrono::steady_clock;
    const auto deadline = Clock::now() + std::chrono::seconds(20);
    for (const cudaStream_t stream : streams_) {
      while (cudaStreamQuery(stream) == cudaErrorNotReady) {
        if (Clock::now() > deadline && *abort_.data() == 0) {
          *reinterpret_cast<volatile uint32_t*>(abort_.data()) = 1;
          ADD_FAILURE() << "the ranks wait for each other: their kernels do not run side by side";
        }
        std::this_thread::yield();
      }
      check_cuda(cudaStreamSynchronize(stream), "test");
    }
  }

  // What each rank gives to a sum and has afterwards. Noise as act holds it.
  struct Rank {
    Tensor x, residual, out;
  };
  std::vector<Rank> ranks(const std::vector<Matrix>& x, const Matrix& residual) {
    std::vector<Rank> all;
    for (const Matrix& mine : x) {
      all.push_back(
          {backend_->upload(mine), backend_->upload(residual), output(mine.rows, mine.cols)});
    }
    return all;
  }
  std::vector<Matrix> noises(int64_t rows, int64_t cols) {
    std::vector<Matrix> all;
    for (size_t r = 0; r < groups_.size(); ++r) all.push_back(noise(rows, cols));
    return all;
  }
  // In rank order in fp32, as promised.
  static Matrix summed(const std::vector<Matrix>& parts) {
    Matrix sum = parts[0];
    for (size_t r = 1; r < parts.size(); ++r) {
      for (size_t i = 0; i < sum.values.size(); ++i) sum.values[i] += parts[r].values[i];
    }
    return sum;
  }

  void check_add_norm(int64_t rows, int64_t cols) {
    const std::vector<Matrix> x = noises(rows, cols);
    const Matrix residual = noise(rows, cols), weight = random_.matrix(1, cols);
    const Tensor device_weight = backend_->upload_vector(weight, DType::kF32);
    const std::vector<Rank> all = ranks(x, residual);
    for (size_t r = 0; r < all.size(); ++r) {
      cuda::one_shot_add_norm(groups_[r], all[r].x.view, all[r].residual.view, device_weight.view,
          1e-5f, all[r].out.view, streams_[r]);
    }
    wait();
    Matrix want = summed(x);
    for (size_t i = 0; i < want.values.size(); ++i) {
      want.values[i] = rounded(want.values[i] + residual.values[i], backend_->act());
    }
    const Matrix out = backend_->download(all[0].out);
    for (const Rank& rank : all) {
      ASSERT_EQ(backend_->download(rank.residual).values, want.values) << rows << " x " << cols;
      ASSERT_EQ(backend_->download(rank.out).values, out.values) << rows << " x " << cols;
    }
    for (int64_t t = 0; t < rows; ++t) {
      const auto norm = reference::rms_norm(want.row(t), weight.row(0), 1e-5, cols);
      for (int64_t i = 0; i < cols; ++i) {
        const double w = norm[static_cast<size_t>(i)];
        ASSERT_NEAR(out.row(t)[i], w, backend_->error(w, std::abs(w), 0)) << rows << " x " << cols;
      }
    }
  }
  void check_sum(int64_t rows, int64_t cols) {
    const std::vector<Matrix> x = noises(rows, cols);
    const std::vector<Rank> all = ranks(x, Matrix(1, 1));
    for (size_t r = 0; r < all.size(); ++r) {
      cuda::one_shot_all_reduce(groups_[r], all[r].x.view, streams_[r]);
    }
    wait();
    Matrix want = summed(x);
    for (float& value : want.values) value = rounded(value, backend_->act());
    for (const Rank& rank : all) {
      ASSERT_EQ(backend_->download(rank.x).values, want.values) << rows << " x " << cols;
    }
  }

  // Sums with a norm, every third one after a plain sum of the same values; at most `ahead` are
  // enqueued at once.
  void in_a_row(int count, int ahead) {
    constexpr int64_t kPatterns = 37;
    struct Shape {
      int64_t rows, cols;
      std::vector<Matrix> patterns;  // by rank: [kPatterns, rows * cols]
      std::vector<Tensor> device_patterns;
      std::vector<Rank> ranks;
      Matrix want;  // of the residual
    };
    std::vector<Shape> shapes;
    for (const auto& [rows, cols] : {std::pair{1, 4096}, {6, 256}, {3, 576}, {1, 64}}) {
      Shape& shape = shapes.emplace_back(Shape{rows, cols, {}, {}, {}, Matrix(rows, cols)});
      for (size_t r = 0; r < groups_.size(); ++r) {
        Matrix& m = shape.patterns.emplace_back(kPatterns, rows * cols);
        for (float& v : m.values)
          v = static_cast<float>(random_.below(8) == 0) - static_cast<float>(random_.below(8) == 0);
        shape.device_patterns.push_back(backend_->upload(m));
      }
      shape.ranks = ranks({shape.want, shape.want}, shape.want);
    }
    const Tensor weight = backend_->upload_vector(Matrix(1, 4096, 1), DType::kF32);
    for (int n = 0; n < count; ++n) {
      Shape& shape = shapes[static_cast<size_t>(n * 7 / 3) % shapes.size()];
      const int64_t pattern = n % kPatterns;
      const bool plain_first = n % 3 == 0;
      for (size_t r = 0; r < groups_.size(); ++r) {
        const Rank& rank = shape.ranks[r];
        TensorView x(
            shape.device_patterns[r].view.row(pattern), backend_->act(), {shape.rows, shape.cols});
        if (plain_first) {
          check_cuda(cudaMemcpyAsync(rank.x.view.data, x.data,
                         static_cast<size_t>(dtype_bytes(x.dtype, x.count())),
                         cudaMemcpyDeviceToDevice, streams_[r]),
              "test");
          x = rank.x.view;
          cuda::one_shot_all_reduce(groups_[r], x, streams_[r]);
        }
        const TensorView norm(weight.view.data, DType::kF32, {shape.cols});
        cuda::one_shot_add_norm(
            groups_[r], x, rank.residual.view, norm, 1e-5f, rank.out.view, streams_[r]);
        const float* mine = shape.patterns[r].row(pattern);
        for (size_t i = 0; i < shape.want.values.size(); ++i) {
          shape.want.values[i] += mine[i] * (plain_first ? static_cast<float>(groups_.size()) : 1);
        }
      }
      if (n % ahead == ahead - 1) wait();
    }
    wait();
    for (const Shape& shape : shapes) {
      for (const Rank& rank : shape.ranks) {
        ASSERT_EQ(backend_->download(rank.residual).values, shape.want.values) << shape.cols;
      }
    }
  }

  std::vector<cudaStream_t> streams_;
  std::vector<Buffer> inboxes_, epochs_;
  std::vector<cuda::OneShotGroup> groups_;
  Buffer abort_;  // host
};

// Plain sums and those with a norm take turns on the same inboxes, in all sorts of sizes.
TEST_P(OneShotTest, AnyShapeInAnyOrder) {
  start(/*size=*/2, /*alone=*/false);
  const int64_t pack = backend_->act() == DType::kF32 ? 2 : 4;
  for (const auto& [rows, cols] : {std::pair{1, 4096}, {1, 4}, {3, 576}, {1, 8192}, {7, 1000},
           {64, 4096}, {127, 36}, {2, 2048}, {128, 576}, {129, 1024}, {256, 2048}, {1000, 64}}) {
    if (!fits(std::min<int64_t>(rows, cuda::kOneShotBlocks))) continue;
    const TensorView x(nullptr, backend_->act(), {rows, cols});
    if (cuda::one_shot_add_norm_supports(2, x)) check_add_norm(rows, cols);
    check_sum(rows, cols);
    check_sum(1, pack * (rows % 5 + 1));
    if (HasFatalFailure()) return;
  }
}

TEST_P(OneShotTest, FourRanksAddInRankOrder) {
  start(/*size=*/4, /*alone=*/false);
  for (const auto& [rows, cols] : {std::pair{1, 4096}, {5, 576}, {33, 1024}, {60, 512}}) {
    ASSERT_TRUE(fits(rows));
    check_add_norm(rows, cols);
    check_sum(rows, cols);
    if (HasFatalFailure()) return;
  }
}

// No host in between, other values every time: a part that came too late, or from another sum,
// would stay in the residual. All are whole numbers below 256, so that every sum is exact.
TEST_P(OneShotTest, AThousandInARow) {
  start(/*size=*/2, /*alone=*/false);
  in_a_row(1000, 32);
}
TEST_P(OneShotTest, AThousandInARowWhoseKernelsOverlap) {
  start(/*size=*/2, /*alone=*/true);
  in_a_row(1000, 4);
}

MILLRACE_ON_ALL_BACKENDS(OneShotTest);

}  // namespace
}  // namespace millrace
