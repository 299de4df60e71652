// The verbs and settings that some families' blocks need beyond Llama's.
#include <gtest/gtest.h>

#include "tests/engine/kernels/paged_batch.h"

namespace millrace {
namespace {

using reference::Matrix;
using reference::rounded;

class BlockVerbsTest : public BackendTest {
 protected:
  // A row normed over the columns of `weight`.
  static std::vector<float> normed(const float* x, const Matrix& weight, double eps) {
    const auto wide = reference::rms_norm(x, weight.row(0), eps, weight.cols);
    return {wide.begin(), wide.end()};
  }
};

TEST_P(BlockVerbsTest, NormAddNormNormsBeforeTheSumAndAfterIt) {
  for (const int64_t width : {1, 90, 96, 1536, 4100}) {
    for (const int64_t rows : {1, 5, 300}) {
      const Matrix x = noise(rows, width), residual = noise(rows, width);
      const Matrix post = random_.matrix(1, width), weight = random_.matrix(1, width);
      const Tensor device_x = backend_->upload(x), sum = backend_->upload(residual);
      const Tensor device_post = backend_->upload_vector(post, DType::kF32);
      const Tensor device_weight = backend_->upload_vector(weight, DType::kF32);
      const Tensor out = output(rows, width);
      ops_->norm_add_norm(
          device_x.view, device_post.view, sum.view, device_weight.view, 1e-5f, out.view);
      const Matrix got_sum = backend_->download(sum), got = backend_->download(out);
      for (int64_t t = 0; t < rows; ++t) {
        const auto inner = normed(x.row(t), post, 1e-5);
        const auto outer = normed(got_sum.row(t), weight, 1e-5);
        for (int64_t i = 0; i < width; ++i) {
          const double term = inner[static_cast<size_t>(i)];
          const double want = term + residual.row(t)[i];
          const double magnitude = std::abs(term) + std::abs(residual.row(t)[i]);
          ASSERT_NEAR(got_sum.row(t)[i], want,
              backend_->error(want, magnitude, 1e-6) + backend_->error(term, std::abs(term), 1e-6))
              << "width " << width;
          const double w = outer[static_cast<size_t>(i)];
          ASSERT_NEAR(got.row(t)[i], w, backend_->error(w, std::abs(w), 1e-6)) << "width " << width;
        }
      }
      // Without a second norm the sum is the same.
      const Tensor other = backend_->upload(residual);
      ops_->norm_add_norm(
          device_x.view, device_post.view, other.view, TensorView(), 1e-5f, TensorView());
      ASSERT_EQ(backend_->download(other).values, got_sum.values);
    }
  }
}

// Some columns of wider rows, in place: how q and k are normed where one rank has all heads.
TEST_P(BlockVerbsTest, RmsNormOfSomeColumns) {
  for (const auto& [begin, width] : {std::pair<int64_t, int64_t>{0, 96}, {96, 48}, {2048, 512}}) {
    const Matrix x = noise(9, begin + width + 16);
    const Matrix weight = random_.matrix(1, width);
    const Tensor device_x = backend_->upload(x);
    const Tensor device_weight = backend_->upload_vector(weight, DType::kF32);
    const TensorView part = device_x.view.slice_cols(begin, width);
    ops_->rms_norm(part, device_weight.view, 1e-5f, part);
    const Matrix got = backend_->download(device_x);
    for (int64_t t = 0; t < 9; ++t) {
      const auto want = normed(x.row(t) + begin, weight, 1e-5);
      for (int64_t i = 0; i < x.cols; ++i) {
        const bool inside = i >= begin && i < begin + width;
        const double w = inside ? want[static_cast<size_t>(i - begin)] : x.row(t)[i];
        ASSERT_NEAR(got.row(t)[i], w, inside ? backend_->error(w, std::abs(w), 1e-6) : 0) << i;
      }
    }
  }
}

// Two ranks' columns of a row, cut out of wider rows: what both know together is the whole norm.
TEST_P(BlockVerbsTest, ANormSharedByRanks) {
  for (const auto& [mine, others] : {std::pair<int64_t, int64_t>{48, 96}, {1000, 31}, {2048, 8}}) {
    const Matrix x = noise(7, mine + others);
    const Matrix weight = random_.matrix(1, mine + others);
    const Tensor device_x = backend_->upload(x);
    const TensorView parts[] = {
        device_x.view.slice_cols(0, mine), device_x.view.slice_cols(mine, others)};
    // Side by side, as a layer keeps those of q and of k.
    const Tensor sums = backend_->upload(Matrix(7, 2), DType::kF32);
    ops_->sum_squares(parts[0], sums.view.slice_cols(0, 1));
    ops_->sum_squares(parts[1], sums.view.slice_cols(1, 1));
    Matrix both = backend_->download(sums);
    for (int64_t t = 0; t < 7; ++t) {
      const reference::Dot a =
          reference::dot(x.row(t), std::vector<double>(x.row(t), x.row(t) + mine));
      ASSERT_NEAR(both.row(t)[0], a.value, 1e-5 * a.magnitude);
      both.row(t)[0] += both.row(t)[1];
    }
    const Tensor total = backend_->upload(both, DType::kF32);
    for (int part = 0; part < 2; ++part) {
      Matrix shard(1, part == 0 ? mine : others);
      std::copy_n(weight.row(0) + (part == 0 ? 0 : mine), shard.cols, shard.row(0));
      ops_->scale_by_rms(parts[part], total.view.slice_cols(0, 1), mine + others,
          backend_->upload_vector(shard, DType::kF32).view, 1e-5f);
      backend_->device().synchronize();
    }
    const Matrix got = backend_->download(device_x);
    for (int64_t t = 0; t < 7; ++t) {
      const auto want = normed(x.row(t), weight, 1e-5);
      for (int64_t i = 0; i < x.cols; ++i) {
        const double w = want[static_cast<size_t>(i)];
        ASSERT_NEAR(got.row(t)[i], w, backend_->error(w, std::abs(w), 2e-6)) << mine;
      }
    }
  }
}

TEST_P(BlockVerbsTest, SoftCap) {
  for (const int64_t width : {3, 255, 8200}) {
    Matrix x = random_.matrix(3, width);
    for (float& value : x.values) value *= 60;
    const Tensor device_x = backend_->upload(x, DType::kF32);
    ops_->soft_cap(device_x.view, 30.0f);
    const Matrix got = backend_->download(device_x);
    for (size_t i = 0; i < x.values.size(); ++i) {
      ASSERT_NEAR(got.values[i], 30 * std::tanh(x.values[i] / 30.0), 1e-5) << x.values[i];
    }
  }
}

TEST_P(BlockVerbsTest, EmbedScalesItsRows) {
  const reference::Weights table = random_.weights(backend_->act(), 10, 64);
  const Tensor device_table = backend_->upload(table);
  const auto ids = backend_->upload(std::vector<int32_t>{3, 12, 0});
  const Tensor out = output(3, 64);
  ops_->embed(ids.span(), 0, device_table.view, 22.625f, out.view);
  const Matrix got = backend_->download(out);
  for (int64_t i = 0; i < 64; ++i) {
    ASSERT_EQ(got.row(0)[i],
        rounded(static_cast<float>(table.values(3)[static_cast<size_t>(i)]) * 22.625f,
            backend_->act()));
    ASSERT_EQ(got.row(1)[i], 0);
  }
}

// Heads normed or not, and rotated wholly, in part or not at all.
TEST_P(BlockVerbsTest, HeadNormsAndPartialRotation) {
  for (const auto& [dim, turned] : {std::pair{64, 64}, {128, 96}, {80, 32}, {96, 0}, {256, 256}}) {
    for (const bool with_norms : {true, false}) {
      const AttentionShape shape{6, 2, dim, 1.0f, 0};
      ops_ = backend_->make_ops(shape);
      PagedBatch batch(*backend_, *ops_, random_, {3, 70, 40}, {1, 70, 5}, shape, 16);
      const Matrix angles = random_.matrix(80, std::max(turned, 2));
      RopeTable rope;
      if (turned > 0) rope.cos_sin = backend_->upload(angles, DType::kF32);
      const Matrix weights[] = {random_.matrix(1, dim), random_.matrix(1, dim)};
      const Tensor device_weights[] = {backend_->upload_vector(weights[0], DType::kF32),
          backend_->upload_vector(weights[1], DType::kF32)};
      HeadNorms norms;
      if (with_norms) norms = {device_weights[0].view, device_weights[1].view, 1e-5f};
      const Matrix before = noise(batch.view.num_tokens, 10 * dim);
      const Tensor qkv = backend_->upload(before);
      ops_->rope_kv_write(qkv.view.slice_cols(0, 6 * dim), qkv.view.slice_cols(6 * dim, 2 * dim),
          qkv.view.slice_cols(8 * dim, 2 * dim), norms, rope, shape, batch.view, batch.cache());
      const Matrix got_q = backend_->download(qkv);
      batch.k = backend_->download(batch.device_k);
      batch.v = backend_->download(batch.device_v);
      for (size_t s = 0; s < 3; ++s) {
        for (int32_t t = batch.cu_tokens[s]; t < batch.cu_tokens[s + 1]; ++t) {
          const int32_t p = batch.positions[static_cast<size_t>(t)];
          for (int32_t h = 0; h < 10; ++h) {
            std::vector<float> in(before.row(t) + h * dim, before.row(t) + (h + 1) * dim);
            if (with_norms && h < 8) in = normed(in.data(), weights[h < 6 ? 0 : 1], 1e-5);
            std::vector<double> want(in.begin(), in.end());
            if (turned > 0 && h < 8) {
              const auto part = reference::rope(in.data(), angles.row(p), turned, false);
              std::ranges::copy(part, want.begin());
            }
            const float* got = h < 6   ? got_q.row(t) + h * dim
                               : h < 8 ? batch.slot(batch.k, s, h - 6, p)
                                       : batch.slot(batch.v, s, h - 8, p);
            for (int32_t d = 0; d < dim; ++d) {
              const double w = want[static_cast<size_t>(d)];
              ASSERT_NEAR(got[d], w, backend_->error(w, 4, 2e-6))
                  << "head " << h << " dim " << d << " of " << dim << ", " << turned << " turned";
            }
          }
        }
      }
    }
  }
}

MILLRACE_ON_ALL_BACKENDS(BlockVerbsTest);

}  // namespace
}  // namespace millrace
