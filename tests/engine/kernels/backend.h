// What the tests of the verbs run on: each program has its own list of backends, all its tests run
// on each of them. Inputs are rounded to the backend's activation dtype before the reference sees
// them, so that a tolerance covers arithmetic alone.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <ostream>

#include "engine/core/device.h"
#include "engine/kernels/ops.h"
#include "tests/engine/kernels/reference.h"

namespace millrace {

// The largest step of these tests.
inline constexpr int32_t kTestSequences = 256;
inline constexpr int32_t kTestTokens = 1024;
inline constexpr int32_t kTestRows = 64;  // of logits
inline constexpr int64_t kTestVocabulary = 128256;

// Values in the memory of a device.
template <typename T>
struct DeviceArray {
  Buffer buffer;
  size_t size = 0;
  T* data() const { return reinterpret_cast<T*>(buffer.data()); }
  std::span<const T> span() const { return {data(), size}; }
};

class TestBackend {
 public:
  using MakeOps = std::function<std::unique_ptr<Ops>(const AttentionShape&)>;
  TestBackend(std::unique_ptr<Device> device, MakeOps make_ops)
      : device_(std::move(device)), make_ops_(std::move(make_ops)) {}

  Device& device() { return *device_; }
  DType act() const { return device_->activation_dtype(); }
  bool is_cpu() const { return !device_->asynchronous(); }
  // Whether a matrix of this type is held as it is stored.
  bool holds(DType dtype) const { return device_->weight_dtype(dtype) == dtype; }
  // Every call of rope_kv_write and attention has this shape. The result dies before the backend.
  std::unique_ptr<Ops> make_ops(const AttentionShape& shape = {4, 2, 64, 0.125f, 0}) {
    return make_ops_(shape);
  }

  // How far a result of type `dtype` may lie from `want`, computed as a sum of terms of this
  // magnitude: `cpu` of the magnitude on the CPU, else two roundings and the sum's own error.
  double error(double want, double magnitude, double cpu, DType dtype) const {
    if (is_cpu()) return cpu * magnitude;
    const double sum = (act() == DType::kF32 ? 5e-6 : 2e-5) * magnitude + 1e-34;
    switch (dtype) {
      case DType::kBF16: return 0x1p-7 * std::abs(want) + sum;
      case DType::kF16: return 0x1p-10 * std::abs(want) + sum + 0x1p-24;
      default: return 2e-5 * std::abs(want) + sum;
    }
  }
  double error(double want, double magnitude, double cpu) const {
    return error(want, magnitude, cpu, act());
  }

  template <typename T>
  DeviceArray<T> upload(const std::vector<T>& from) {
    const size_t bytes = from.size() * sizeof(T);
    DeviceArray<T> to{device_->allocate(static_cast<int64_t>(bytes) + 1, "test"), from.size()};
    copy(to.data(), from);
    return to;
  }
  // Waits for the work that may still read what lay there.
  template <typename T>
  void copy(T* to, const std::vector<T>& from) {
    device_->synchronize();
    if (from.empty()) return;
    device_->copy_to_device(
        to, {reinterpret_cast<const uint8_t*>(from.data()), from.size() * sizeof(T)});
  }
  template <typename T>
  std::vector<T> download(const T* from, size_t count) {
    std::vector<T> to(count);
    device_->synchronize();
    if (count == 0) return to;
    device_->copy_to_host({reinterpret_cast<uint8_t*>(to.data()), count * sizeof(T)}, from);
    return to;
  }
  // As act [rows, cols] unless said otherwise.
  Tensor upload(const reference::Matrix& from, DType dtype) {
    Tensor to = device_->tensor(dtype, {from.rows, from.cols}, "test");
    const auto width = static_cast<size_t>(dtype_info(dtype).block_bytes);
    std::vector<uint8_t> bytes(from.values.size() * width);
    for (size_t i = 0; i < from.values.size(); ++i) {
      reference::store(from.values[i], dtype, bytes.data() + i * width);
    }
    device_->copy_to_device(to.view.data, bytes);
    return to;
  }
  Tensor upload(const reference::Matrix& from) { return upload(from, act()); }
  // As a loaded matrix lies on the device.
  Tensor upload(const reference::Weights& from) {
    Tensor to = device_->tensor(from.dtype, {from.rows, from.cols}, "test");
    device_->copy_to_device(to.view.data, from.bytes);
    make_ops()->pack_weights(to.view);
    return to;
  }
  // One row as a tensor of rank 1.
  Tensor upload_vector(const reference::Matrix& from, DType dtype) {
    Tensor to = upload(from, dtype);
    to.view = TensorView(to.view.data, dtype, {from.cols});
    return to;
  }
  // A contiguous tensor as rows along its first dimension.
  reference::Matrix download(const Tensor& from) {
    const TensorView& view = from.view;
    reference::Matrix to(view.rows(), view.count() / view.rows());
    const auto width = static_cast<size_t>(dtype_info(view.dtype).block_bytes);
    const auto bytes = download<uint8_t>(view.data, to.values.size() * width);
    for (size_t i = 0; i < to.values.size(); ++i) {
      to.values[i] =
          static_cast<float>(reference::weight_value(bytes.data() + i * width, view.dtype, 0));
    }
    return to;
  }

 private:
  std::unique_ptr<Device> device_;
  MakeOps make_ops_;
};

struct BackendFactory {
  std::string name;
  std::function<std::unique_ptr<TestBackend>()> make;  // null where this machine lacks the device
  friend void PrintTo(const BackendFactory& factory, std::ostream* out) { *out << factory.name; }
};

// Of this program.
std::vector<BackendFactory> test_backends();

class BackendTest : public testing::TestWithParam<BackendFactory> {
 protected:
  void SetUp() override {
    backend_ = GetParam().make();
    if (backend_ == nullptr) GTEST_SKIP() << "no device for " << GetParam().name;
    ops_ = backend_->make_ops();
  }
  // Normal noise as the activations of the backend hold it.
  reference::Matrix noise(int64_t rows, int64_t cols) {
    return random_.matrix(rows, cols, backend_->act());
  }
  // A result's memory, filled with what no verb gives.
  Tensor output(int64_t rows, int64_t cols, DType dtype) {
    return backend_->upload(reference::Matrix(rows, cols, -77), dtype);
  }
  Tensor output(int64_t rows, int64_t cols) { return output(rows, cols, backend_->act()); }

  std::unique_ptr<TestBackend> backend_;
  std::unique_ptr<Ops> ops_;
  reference::Random random_{11};
};

#define MILLRACE_ON_ALL_BACKENDS(Suite)                                         \
  INSTANTIATE_TEST_SUITE_P(Backends, Suite, testing::ValuesIn(test_backends()), \
      [](const auto& info) { return info.param.name; })

}  // namespace millrace
