#include <gtest/gtest.h>

#include "tests/engine/kernels/paged_batch.h"

namespace millrace {
namespace {

using reference::Matrix;
using reference::rounded;

class RowsTest : public BackendTest {
 protected:
  void check_norm(const Matrix& got, const Matrix& x, const Matrix& weight, float eps) {
    for (int64_t t = 0; t < x.rows; ++t) {
      const auto want = reference::rms_norm(x.row(t), weight.row(0), double{eps}, x.cols);
      for (int64_t i = 0; i < x.cols; ++i) {
        const double w = want[static_cast<size_t>(i)];
        ASSERT_NEAR(got.row(t)[i], w, backend_->error(w, std::abs(w), 1e-6)) << x.cols;
      }
    }
  }
};

TEST_P(RowsTest, RmsNormAlsoInPlace) {
  for (const int64_t width : {1, 15, 16, 17, 100, 576, 1024, 2049, 4096, 8192}) {
    for (const int64_t rows : {1, 40}) {
      const Matrix x = noise(rows, width);
      const Matrix weight = random_.matrix(1, width);
      const Tensor device_x = backend_->upload(x);
      const Tensor device_weight = backend_->upload_vector(weight, DType::kF32);
      const Tensor out = output(rows, width);
      ops_->rms_norm(device_x.view, device_weight.view, 1e-5f, out.view);
      const Matrix got = backend_->download(out);
      check_norm(got, x, weight, 1e-5f);
      ops_->rms_norm(device_x.view, device_weight.view, 1e-5f, device_x.view);
      ASSERT_EQ(backend_->download(device_x).values, got.values);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(RowsTest, AddAndAddRmsNormUpdateTheResidual) {
  for (const int64_t width : {1, 90, 96, 1536, 4100}) {
    for (const int64_t rows : {1, 5, 300}) {
      const Matrix x = noise(rows, width);
      const Matrix residual = noise(rows, width);
      const Matrix weight = random_.matrix(1, width);
      const Tensor device_x = backend_->upload(x);
      const Tensor sum = backend_->upload(residual);
      ops_->add(sum.view, device_x.view);
      const Matrix got_sum = backend_->download(sum);
      for (size_t i = 0; i < x.values.size(); ++i) {
        ASSERT_EQ(got_sum.values[i], rounded(x.values[i] + residual.values[i], backend_->act()));
      }
      const Tensor device_residual = backend_->upload(residual);
      const Tensor device_weight = backend_->upload_vector(weight, DType::kF32);
      const Tensor out = output(rows, width);
      ops_->add_rms_norm(device_x.view, device_residual.view, device_weight.view, 1e-6f, out.view);
      ASSERT_EQ(backend_->download(device_residual).values, got_sum.values);
      check_norm(backend_->download(out), got_sum, weight, 1e-6f);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(RowsTest, GateMulOverItsWholeRange) {
  for (const auto& [width, act] :
      {std::pair<int64_t, Activation>{1003, Activation::kSilu}, {1008, Activation::kSilu},
          {1003, Activation::kGeluTanh}, {1008, Activation::kGeluTanh}}) {
    Matrix both = noise(3, 2 * width);
    for (int64_t i = 0; i < width; ++i) {
      both.row(1)[i] = rounded(static_cast<float>(i - 500), backend_->act());
      both.row(2)[i] = rounded(static_cast<float>(i - 500) * 0.02f, backend_->act());
    }
    Tensor device_both = backend_->upload(both);
    const Tensor out = output(3, width);
    const auto run = [&] {
      ops_->gate_mul(device_both.view.slice_cols(0, width),
          device_both.view.slice_cols(width, width), act, out.view);
      return backend_->download(out);
    };
    const Matrix got = run();
    for (int64_t t = 0; t < 3; ++t) {
      for (int64_t i = 0; i < width; ++i) {
        const double want = reference::gate_mul(act, both.row(t)[i], both.row(t)[width + i]);
        // Of gelu the rounding of its exponent, up to 87, counts as well.
        const double relative = act == Activation::kSilu ? 5e-7 : 1e-5;
        ASSERT_NEAR(got.row(t)[i], want, backend_->error(want, std::abs(want), relative) + 1e-34)
            << i;
      }
    }
    both.row(0)[17] = NAN;  // must show, so that sampling can refuse the row
    device_both = backend_->upload(both);
    ASSERT_TRUE(std::isnan(run().values[17]));
  }
}

TEST_P(RowsTest, GatherRows) {
  for (const int64_t width : {33, 64, 2048}) {
    const Matrix x = noise(9, width);
    const Tensor device_x = backend_->upload(x);
    const std::vector<int32_t> rows = {8, 0, 8, 3};
    const auto device_rows = backend_->upload(rows);
    const Tensor out = output(4, width);
    ops_->gather_rows(device_x.view, device_rows.span(), out.view);
    const Matrix got = backend_->download(out);
    for (int64_t i = 0; i < 4; ++i) {
      ASSERT_TRUE(std::equal(got.row(i), got.row(i) + width, x.row(rows[static_cast<size_t>(i)])));
    }
  }
}

TEST_P(RowsTest, RopeRotatesAndWritesTheCache) {
  for (const int32_t dim : {16, 64, 80, 96, 128, 256}) {
    for (const bool interleaved : {false, true}) {
      for (const int32_t block_size : {16, 32, 64}) {
        const AttentionShape shape{6, 2, dim, 1.0f, 0};
        ops_ = backend_->make_ops(shape);
        PagedBatch batch(*backend_, *ops_, random_, {3, 70, 40}, {1, 70, 5}, shape, block_size);
        const Matrix angles = random_.matrix(80, dim);
        const RopeTable rope{backend_->upload(angles, DType::kF32), interleaved};
        const Matrix before = noise(batch.view.num_tokens, 10 * dim);  // a fused projection's
        const Tensor qkv = backend_->upload(before);
        ops_->rope_kv_write(qkv.view.slice_cols(0, 6 * dim), qkv.view.slice_cols(6 * dim, 2 * dim),
            qkv.view.slice_cols(8 * dim, 2 * dim), HeadNorms(), rope, shape, batch.view,
            batch.cache());
        const Matrix turned_q = backend_->download(qkv);
        const Matrix former_k = batch.k;
        const Matrix former_v = batch.v;
        batch.k = backend_->download(batch.device_k);
        batch.v = backend_->download(batch.device_v);
        size_t written = 0;
        for (size_t s = 0; s < 3; ++s) {
          for (int32_t t = batch.cu_tokens[s]; t < batch.cu_tokens[s + 1]; ++t) {
            const int32_t p = batch.positions[static_cast<size_t>(t)];
            for (int32_t h = 0; h < 10; ++h) {
              const float* from = before.row(t) + h * dim;
              const auto turned = reference::rope(from, angles.row(p), dim, interleaved);
              const float* got = h < 6   ? turned_q.row(t) + h * dim
                                 : h < 8 ? batch.slot(batch.k, s, h - 6, p)
                                         : batch.slot(batch.v, s, h - 8, p);
              for (int32_t d = 0; d < dim; ++d) {
                const double want = h < 8 ? turned[static_cast<size_t>(d)] : double{from[d]};
                ASSERT_NEAR(got[d], want, backend_->error(want, 4, 5e-7))
                    << "head " << h << " dim " << d << " of " << dim;
              }
            }
            written += static_cast<size_t>(2 * dim);
          }
        }
        // Nothing else of the cache has changed.
        for (const auto& [now, former] : {std::pair(&batch.k, &former_k), {&batch.v, &former_v}}) {
          size_t changed = 0;
          for (size_t i = 0; i < now->values.size(); ++i) {
            const float a = now->values[i];
            const float b = former->values[i];
            if (a != b && !(std::isnan(a) && std::isnan(b))) ++changed;
          }
          ASSERT_LE(changed, written);
        }
        // What is no head's column of the wide rows neither.
        for (int32_t t = 0; t < batch.view.num_tokens; ++t) {
          ASSERT_TRUE(std::equal(
              turned_q.row(t) + 8 * dim, turned_q.row(t) + 10 * dim, before.row(t) + 8 * dim));
        }
      }
    }
  }
}

MILLRACE_ON_ALL_BACKENDS(RowsTest);

}  // namespace
}  // namespace millrace
