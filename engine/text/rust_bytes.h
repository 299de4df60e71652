// Inside the room: buffers of the Rust library that free themselves, and text lent to it.
#pragma once

#include <string>
#include <string_view>

#include "engine/text/rust/millrace_text.h"

namespace millrace {

// Bytes the Rust library filled.
class RustBuffer {
 public:
  RustBuffer() = default;
  ~RustBuffer() { mr_buffer_free(buffer_); }
  RustBuffer(const RustBuffer&) = delete;

  mr_buffer* out() { return &buffer_; }  // to be filled once
  std::string_view view() const {
    return {reinterpret_cast<const char*>(buffer_.data), buffer_.size};
  }
  std::string text() const { return std::string(view()); }

 private:
  mr_buffer buffer_{};
};

inline mr_bytes rust_bytes(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

}  // namespace millrace
