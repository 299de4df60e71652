// Memory a kernel needs while it runs, kept by each thread from call to call.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace millrace {

// At least `floats` floats, 64-byte aligned, valid until this thread asks again. A thread runs one
// kernel at a time, so one piece each is enough.
inline float* thread_scratch(int64_t floats) {
  struct Free {
    void operator()(float* p) const { ::operator delete (p, std::align_val_t{64}); }
  };
  static thread_local std::unique_ptr<float, Free> memory;
  static thread_local int64_t size = 0;
  if (floats > size) {
    memory.reset();
    size = 0;
    const auto bytes = static_cast<size_t>(floats) * sizeof(float);
    memory.reset(static_cast<float*>(::operator new (bytes, std::align_val_t{64})));
    size = floats;
  }
  return memory.get();
}

}  // namespace millrace
