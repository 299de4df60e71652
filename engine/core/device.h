// Where tensors live: the CPU, or a GPU (cuda/). Used from the worker's compute thread unless said
// otherwise.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "engine/core/tensor.h"

namespace millrace {

// A point in the device's work, for measuring and waiting.
class DeviceEvent {
 public:
  virtual ~DeviceEvent() = default;
  virtual void record() = 0;  // behind everything enqueued so far; compute thread
  virtual bool done() = 0;    // any thread; throws Error when the device failed
  virtual double ms_since(DeviceEvent& earlier) = 0;  // both done
};

// Of what is free when the weights are there, the KV cache's where nothing is said.
inline constexpr double kCpuKvShare = 0.4, kGpuKvShare = 0.92;
// A GPU computes with weights in the dtype of its activations.
inline DType gpu_weight_dtype(DType stored, DType activation) {
  return stored == DType::kI32 ? stored : activation;
}

// "Enqueue" means in the order of the compute stream, returning at once on a GPU; on the CPU it is
// done when the call returns.
class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;
  // Of hidden states, the KV cache and biases.
  virtual DType activation_dtype() const = 0;
  // How a matrix that a file stores so is held here.
  virtual DType weight_dtype(DType stored) const = 0;
  // Zeroed, 64-byte aligned. Throws Error(kOutOfMemory) naming `what` and the size.
  virtual Buffer allocate(int64_t bytes, const std::string& what) = 0;
  // Host memory that copies move to and from without a stop (page-locked on a GPU).
  virtual Buffer allocate_host(int64_t bytes, const std::string& what) = 0;
  // Complete on return; any thread.
  virtual void copy_to_device(void* to, std::span<const uint8_t> from) = 0;
  virtual void copy_to_host(std::span<uint8_t> to, const void* from) = 0;
  // The same in two halves: `from`, of allocate_host, is read until the calling thread's next
  // end_copies() returns.
  virtual void begin_copy(void* to, std::span<const uint8_t> from) = 0;
  virtual void end_copies() = 0;
  // The host side is from allocate_host.
  virtual void enqueue_copy_in(void* to, std::span<const uint8_t> from) = 0;
  virtual void enqueue_copy_out(std::span<uint8_t> to, const void* from) = 0;
  virtual void enqueue_copy(void* to, const void* from, int64_t bytes) = 0;
  // Normal noise of this standard deviation, a function of seed and index alone.
  virtual void fill_normal(const TensorView& to, float deviation, uint64_t seed) = 0;
  virtual std::unique_ptr<DeviceEvent> make_event() = 0;
  // Waits until everything enqueued is done.
  virtual void synchronize() = 0;
  // Records what `body` enqueues as graph `key`, without running it; does nothing on the CPU.
  virtual void capture(int64_t key, const std::function<void()>& body) = 0;
  // Enqueues graph `key`; false when there is none.
  virtual bool replay(int64_t key) = 0;
  // True when verbs return before their work is done.
  virtual bool asynchronous() const = 0;
  // Bytes that may still be taken without swapping or failing, as the system says now, and which
  // share of them the KV cache may have when nothing is said.
  virtual int64_t free_bytes() const = 0;
  virtual double kv_share() const = 0;
  // What allocate() has given and is still held.
  int64_t allocated_bytes() const { return *allocated_; }
  // What is gone of the device's memory, as the system says: on a GPU since this was made, with
  // what libraries and graphs took; on the CPU what is resident, with the program itself, where
  // memory that was allocated counts only when it has been written to.
  virtual int64_t used_bytes() const = 0;
  // Whether there is no memory behind what it allocates: nothing is to be read or written.
  virtual bool only_counts() const { return false; }

  // A quantized one has the room of its packed form.
  Tensor tensor(DType dtype, std::initializer_list<int64_t> shape, const std::string& what) {
    TensorView view(nullptr, dtype, shape);
    const int64_t cols = view.cols();
    Buffer buffer = allocate(held_bytes(dtype, cols == 0 ? 0 : view.count() / cols, cols), what);
    view.data = buffer.data();
    return {view, buffer};
  }

 protected:
  // A buffer of `owner`'s memory, in allocated_bytes() while it is held.
  Buffer counted(std::shared_ptr<void> owner, int64_t bytes) {
    *allocated_ += bytes;
    void* memory = owner.get();
    const auto release = [owner = std::move(owner), total = allocated_, bytes](
                             void*) { *total -= bytes; };
    return Buffer(std::shared_ptr<void>(memory, release), bytes);
  }

 private:
  std::shared_ptr<std::atomic<int64_t>> allocated_ = std::make_shared<std::atomic<int64_t>>(0);
};

std::unique_ptr<Device> make_cpu_device();
// For planning: counts what it is asked for, as the CPU, or as a GPU with such activations would.
// `used`: its used_bytes() before anything is allocated.
std::unique_ptr<Device> make_counting_device(std::optional<DType> gpu_activation, int64_t used);

}  // namespace millrace
