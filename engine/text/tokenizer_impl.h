// The inside of Tokenizer, shared by the files of this room: the Rust handle, and buffers of the
// Rust library that free themselves. Immutable; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "engine/text/rust/millrace_text.h"
#include "engine/text/text.h"

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

inline const uint8_t* rust_bytes(std::string_view text) {
  return reinterpret_cast<const uint8_t*>(text.data());
}

// The part of `bytes` that is certain, as UTF-8 with U+FFFD for what is invalid; it is taken out
// of `bytes`. Unless `last`, the start of an unfinished character stays there.
std::string take_utf8(std::string& bytes, bool last);

struct Tokenizer::Impl {
  mr_tokenizer* handle = nullptr;

  ~Impl();
  // Appends the bytes of `id` to `bytes`, without the spaces that still lead the text; false when
  // there is no such id. Special tokens add nothing when `skip_special`.
  bool append(int32_t id, bool skip_special, int32_t& leading_spaces, std::string& bytes) const;
};

}  // namespace millrace
