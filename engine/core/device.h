// Where tensors live. The CPU is the one device of this room; a CUDA device implements the same
// verbs. Used from the worker's compute thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "engine/core/tensor.h"

namespace millrace {

class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;
  // Zeroed, 64-byte aligned. Throws Error(kOutOfMemory) naming `what` and the size.
  virtual Buffer allocate(int64_t bytes, const std::string& what) = 0;
  virtual void copy_to_device(const Buffer& to, int64_t offset, std::span<const uint8_t> from) = 0;
  virtual void copy_to_host(std::span<uint8_t> to, const Buffer& from, int64_t offset) = 0;
  // Bytes that may still be taken without swapping or failing, as the system says now.
  virtual int64_t free_bytes() const = 0;

  Tensor tensor(DType dtype, std::initializer_list<int64_t> shape, const std::string& what) {
    TensorView view(nullptr, dtype, shape);
    Buffer buffer = allocate(dtype_bytes(dtype, view.count()), what);
    view.data = buffer.data();
    return {view, buffer};
  }
};

std::unique_ptr<Device> make_cpu_device();

}  // namespace millrace
