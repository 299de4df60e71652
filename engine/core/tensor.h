// TensorView: what kernels see. Buffer: who owns. Values; a view never outlives its buffer.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>

#include "engine/base/check.h"
#include "engine/core/dtype.h"

namespace millrace {

// Memory of one device (device.h), freed when the last copy goes. Aligned to 64 bytes.
class Buffer {
 public:
  Buffer() = default;
  Buffer(std::shared_ptr<void> data, int64_t bytes) : data_(std::move(data)), bytes_(bytes) {}
  uint8_t* data() const { return static_cast<uint8_t*>(data_.get()); }
  int64_t bytes() const { return bytes_; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  std::shared_ptr<void> data_;
  int64_t bytes_ = 0;
};

// Up to four dimensions, rows (the last dimension) contiguous, dimension 0 strided: a batch of
// rows cut out of wider rows is still one view.
struct TensorView {
  uint8_t* data = nullptr;
  DType dtype = DType::kF32;
  int rank = 0;
  std::array<int64_t, 4> shape{};
  int64_t stride = 0;  // bytes from one index of dimension 0 to the next

  // Contiguous.
  TensorView() = default;
  TensorView(void* memory, DType type, std::initializer_list<int64_t> dims)
      : data(static_cast<uint8_t*>(memory)), dtype(type), rank(static_cast<int>(dims.size())) {
    CHECK(dims.size() >= 1 && dims.size() <= 4, "a tensor has 1 to 4 dimensions");
    std::copy(dims.begin(), dims.end(), shape.begin());
    int64_t inner = 1;
    for (int i = 1; i < rank; ++i) inner *= shape[i];
    stride = rank == 1 ? dtype_bytes(dtype, 1) : dtype_bytes(dtype, inner);
  }

  int64_t rows() const { return shape[0]; }
  int64_t cols() const { return shape[rank - 1]; }
  // Elements in all.
  int64_t count() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= shape[i];
    return n;
  }
  uint8_t* row(int64_t i) const { return data + i * stride; }
  template <typename T>
  T* row_as(int64_t i) const {
    return reinterpret_cast<T*>(row(i));
  }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }
  // Rows [begin, begin + n) of dimension 0.
  TensorView slice_rows(int64_t begin, int64_t n) const {
    CHECK(begin >= 0 && n >= 0 && begin + n <= shape[0], "rows {}+{} of {}", begin, n, shape[0]);
    TensorView v = *this;
    v.data += begin * stride;
    v.shape[0] = n;
    return v;
  }
  // Columns [begin, begin + n) of a 2-D view; block-aligned for quantized types.
  TensorView slice_cols(int64_t begin, int64_t n) const {
    CHECK(rank == 2 && begin >= 0 && n >= 0 && begin + n <= shape[1], "columns {}+{} of {}", begin,
        n, shape[1]);
    TensorView v = *this;
    v.data += dtype_bytes(dtype, begin);
    v.shape[1] = n;
    return v;
  }
  bool contiguous() const {
    return shape[0] <= 1 || stride * shape[0] == dtype_bytes(dtype, count());
  }
};

// A view with the memory it looks at.
struct Tensor {
  TensorView view;
  Buffer buffer;
};

}  // namespace millrace
