#include <gtest/gtest.h>

#include "tests/engine/kernels/backend.h"

namespace millrace {
namespace {

using reference::Matrix;
using reference::Weights;

class LinearTest : public BackendTest {
 protected:
  std::vector<DType> weight_types() const {
    std::vector<DType> all;
    for (const DType dtype : reference::kWeightTypes) {
      if (backend_->holds(dtype)) all.push_back(dtype);
    }
    return all;
  }
  void check(int64_t m, const Weights& w, DType out_dtype) {
    const Matrix x = noise(m, w.cols);
    const Matrix bias = noise(1, w.rows);
    const Tensor device_x = backend_->upload(x);
    const Tensor device_w = backend_->upload(w);
    const Tensor device_bias = backend_->upload_vector(bias, backend_->act());
    Matrix got[2];
    for (const bool with_bias : {false, true}) {
      const Tensor out = output(m, w.rows, out_dtype);
      ops_->linear(
          device_x.view, device_w.view, with_bias ? device_bias.view : TensorView(), out.view);
      got[with_bias] = backend_->download(out);
    }
    for (int64_t j = 0; j < w.rows; ++j) {
      const std::vector<double> row = w.values(j);
      for (int64_t i = 0; i < m; ++i) {
        const reference::Dot want = reference::dot(x.row(i), row);
        for (const bool with_bias : {false, true}) {
          const double offset = with_bias ? double{bias.values[static_cast<size_t>(j)]} : 0.0;
          ASSERT_NEAR(got[with_bias].row(i)[j], want.value + offset,
              backend_->error(
                  want.value + offset, want.magnitude + std::abs(offset), 1e-6, out_dtype) +
                  (is_quantized(w.dtype) ? want.sixteen : 0) + 1e-30)
              << dtype_info(w.dtype).name << " to " << dtype_info(out_dtype).name << " m " << m
              << " n " << w.rows << " k " << w.cols << " at " << i << "," << j;
        }
      }
    }
  }
};

struct Shape {
  int64_t m, n, k;
};

TEST_P(LinearTest, MatchesReferenceForEveryTypeAndShape) {
  const Shape shapes[] = {{1, 1, 32}, {1, 5, 64}, {2, 3, 96}, {3, 7, 576}, {4, 64, 64}, {5, 6, 32},
      {6, 4, 1536}, {7, 130, 96}, {37, 9, 64}, {200, 5, 64}, {1, 200, 576}, {11, 67, 160},
      {1, 3, 1}, {5, 5, 17}, {2, 9, 33}, {8, 3, 100}, {1, 6, 63}, {300, 33, 40}, {1, 40, 512},
      {4, 17, 256}, {29, 33, 768}};
  for (const DType dtype : weight_types()) {
    for (const auto& [m, n, k] : shapes) {
      if (k % dtype_info(dtype).block_size != 0) continue;
      check(m, random_.weights(dtype, n, k), backend_->act());
      if (HasFatalFailure()) return;
    }
  }
}

// Also as fp32, as logits are wanted.
TEST_P(LinearTest, EveryNumberOfRows) {
  const DType dtype = backend_->act();
  const Weights shapes[] = {random_.weights(dtype, 48, 128), random_.weights(dtype, 31, 72),
      random_.weights(dtype, 24, 1024)};
  for (const int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65,
           96, 127, 128, 129, 200, 256, 300}) {
    for (const Weights& w : shapes) {
      check(m, w, DType::kF32);
      if (dtype != DType::kF32) check(m, w, dtype);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(LinearTest, WideAndDeep) {
  for (const int64_t m : {1, 3, 16, 130}) {
    check(m, random_.weights(backend_->act(), 1000, 576), backend_->act());
    check(m, random_.weights(backend_->act(), 72, 4096), backend_->act());
    if (HasFatalFailure()) return;
  }
}

// What the sum begins with is part of it.
TEST_P(LinearTest, AddsToWhatIsThere) {
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{144, 576}, {32, 4096}, {31, 72}}) {
    const Weights w = random_.weights(backend_->act(), n, k);
    const Tensor device_w = backend_->upload(w);
    const Matrix bias = noise(1, n);
    const Tensor device_bias = backend_->upload_vector(bias, backend_->act());
    for (const int64_t m : {1, 5, 16, 33, 64, 100, 130}) {
      for (const bool with_bias : {false, true}) {
        const Matrix x = noise(m, k), before = noise(m, n);
        const Tensor to = backend_->upload(before), scratch = output(m, n);
        ops_->linear_add(backend_->upload(x).view, device_w.view,
            with_bias ? device_bias.view : TensorView(), scratch.view, to.view);
        const Matrix got = backend_->download(to);
        for (int64_t j = 0; j < n; ++j) {
          const std::vector<double> row = w.values(j);
          for (int64_t i = 0; i < m; ++i) {
            const reference::Dot dot = reference::dot(x.row(i), row);
            const double first = before.row(i)[j];
            const double offset = with_bias ? double{bias.values[static_cast<size_t>(j)]} : 0.0;
            // The product may be rounded before it is added.
            ASSERT_NEAR(got.row(i)[j], first + dot.value + offset,
                backend_->error(std::abs(dot.value + offset) + std::abs(first),
                    dot.magnitude + std::abs(offset) + std::abs(first), 1e-6))
                << "m " << m << " n " << n << " at " << i << "," << j;
          }
        }
      }
    }
  }
}

TEST_P(LinearTest, GatedIsTheActivationOfOneHalfTimesTheOther) {
  struct Case {
    int64_t width, k;
    Activation act;
  };
  constexpr Activation kSilu = Activation::kSilu, kGelu = Activation::kGeluTanh;
  for (const auto& [width, k, act] : {Case{160, 576, kSilu}, {24, 4096, kSilu}, {72, 64, kSilu},
           {31, 40, kSilu}, {160, 576, kGelu}, {31, 40, kGelu}}) {
    const Weights w = random_.weights(backend_->act(), 2 * width, k);
    const Tensor device_w = backend_->upload(w);
    for (const int64_t m : {1, 7, 16, 40, 64, 120, 200}) {
      const Matrix x = noise(m, k);
      const Tensor scratch = output(m, 2 * width), out = output(m, width);
      ops_->gated_linear(
          backend_->upload(x).view, device_w.view, TensorView(), act, scratch.view, out.view);
      const Matrix got = backend_->download(out);
      for (int64_t j = 0; j < width; ++j) {
        const std::vector<double> gate_row = w.values(j), up_row = w.values(width + j);
        for (int64_t i = 0; i < m; ++i) {
          const reference::Dot gate = reference::dot(x.row(i), gate_row);
          const reference::Dot up = reference::dot(x.row(i), up_row);
          const double gated = reference::gate_mul(act, gate.value, 1);
          // Both halves may be rounded before they meet; the slopes are at most 1.13.
          const double error =
              backend_->error(gate.value, gate.magnitude, 2e-6) * 1.13 * std::abs(up.value) +
              backend_->error(up.value, up.magnitude, 2e-6) * std::abs(gated);
          ASSERT_NEAR(got.row(i)[j], gated * up.value,
              error + backend_->error(gated * up.value, std::abs(gated * up.value), 1e-6) + 1e-6)
              << "m " << m << " width " << width << " at " << i << "," << j;
        }
      }
    }
  }
}

TEST_P(LinearTest, StridedRowsTouchNothingElse) {
  const DType dtype = backend_->holds(DType::kQ4_1) ? DType::kQ4_1 : backend_->act();
  const Weights w = random_.weights(dtype, 30, 64);
  const Tensor device_w = backend_->upload(w);
  for (const int64_t m : {1, 3, 9, 70}) {
    for (const auto& [width, begin] : {std::pair<int64_t, int64_t>{200, 31}, {160, 32}, {161, 0}}) {
      const Matrix wide = noise(m, width);
      const Tensor x = backend_->upload(wide);
      const Tensor out = output(m, 100);
      ops_->linear(
          x.view.slice_cols(begin, 64), device_w.view, TensorView(), out.view.slice_cols(40, 30));
      const Matrix got = backend_->download(out);
      for (int64_t j = 0; j < 100; ++j) {
        const bool outside = j < 40 || j >= 70;
        const std::vector<double> row = w.values(outside ? 0 : j - 40);
        for (int64_t i = 0; i < m; ++i) {
          if (outside) {
            ASSERT_EQ(got.row(i)[j], -77.0f) << i << "," << j;
            continue;
          }
          const reference::Dot want = reference::dot(wide.row(i) + begin, row);
          ASSERT_NEAR(got.row(i)[j], want.value,
              backend_->error(want.value, want.magnitude, 1e-6) +
                  (is_quantized(dtype) ? want.sixteen : 0))
              << "m " << m << " of " << width << " from " << begin;
        }
      }
    }
  }
}

TEST_P(LinearTest, EmbedTakesItsRowsAndZerosOthers) {
  for (const DType dtype : weight_types()) {
    for (const int64_t width : {64, 32, 37, 2048}) {
      if (width % dtype_info(dtype).block_size != 0) continue;
      const Weights table = random_.weights(dtype, 10, width);
      const Tensor device_table = backend_->upload(table);
      const std::vector<int32_t> ids = {100, 109, 99, 110, 105, 0};
      const auto device_ids = backend_->upload(ids);
      const Tensor out = output(6, width);
      ops_->embed(device_ids.span(), 100, device_table.view, 1.0f, out.view);
      const Matrix got = backend_->download(out);
      for (size_t t = 0; t < ids.size(); ++t) {
        const int32_t row = ids[t] - 100;
        for (int64_t i = 0; i < width; ++i) {
          const double want =
              row < 0 || row >= 10 ? 0.0 : reference::weight_value(table.row(row), dtype, i);
          ASSERT_EQ(got.row(static_cast<int64_t>(t))[i],
              reference::rounded(static_cast<float>(want), backend_->act()));
        }
      }
    }
  }
}

MILLRACE_ON_ALL_BACKENDS(LinearTest);

}  // namespace
}  // namespace millrace
