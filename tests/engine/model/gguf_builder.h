// Writes GGUF files for tests, sound or broken on purpose.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "engine/base/bytes.h"

namespace millrace {

class GgufBuilder {
 public:
  uint32_t magic = 0x46554747;
  uint32_t version = 3;
  uint64_t alignment = 32;
  int64_t count_error = 0;  // added to the number of tensors stated

  static void put_text(ByteWriter& out, std::string_view text) {
    out.put(uint64_t{text.size()});
    for (const char c : text) out.put(c);
  }
  GgufBuilder& u32(std::string_view key, uint32_t value) { return scalar(key, 4, value); }
  GgufBuilder& f32(std::string_view key, float value) { return scalar(key, 6, value); }
  GgufBuilder& boolean(std::string_view key, bool value) { return scalar(key, 7, uint8_t{value}); }
  GgufBuilder& text(std::string_view key, std::string_view value) {
    begin(key, 8);
    put_text(pairs_, value);
    return *this;
  }
  GgufBuilder& texts(std::string_view key, const std::vector<std::string>& values) {
    begin(key, 9);
    pairs_.put(uint32_t{8});
    pairs_.put(uint64_t{values.size()});
    for (const std::string& value : values) put_text(pairs_, value);
    return *this;
  }
  GgufBuilder& i32s(std::string_view key, const std::vector<int32_t>& values) {
    begin(key, 9);
    pairs_.put(uint32_t{5});
    pairs_.put(uint64_t{values.size()});
    for (const int32_t value : values) pairs_.put(value);
    return *this;
  }
  // A pair whose value is the given raw bytes.
  GgufBuilder& raw(std::string_view key, uint32_t type, const Bytes& value) {
    begin(key, type);
    for (const uint8_t byte : value) pairs_.put(byte);
    return *this;
  }
  // `dims` in GGUF's order; `bytes` of data follow at the next aligned offset unless one is given.
  GgufBuilder& tensor(std::string_view name, const std::vector<uint64_t>& dims, uint32_t type,
      uint64_t bytes, int64_t offset = -1) {
    ++num_tensors_;
    put_text(tensors_, name);
    tensors_.put(static_cast<uint32_t>(dims.size()));
    for (const uint64_t dim : dims) tensors_.put(dim);
    tensors_.put(type);
    tensors_.put(offset >= 0 ? static_cast<uint64_t>(offset) : data_bytes_);
    data_bytes_ += (bytes + alignment - 1) / alignment * alignment;
    return *this;
  }
  std::string build() {
    ByteWriter out;
    out.put(magic);
    out.put(version);
    out.put(static_cast<uint64_t>(num_tensors_ + count_error));
    out.put(num_pairs_);
    Bytes bytes = out.take();
    const Bytes pairs = pairs_.take();
    const Bytes tensors = tensors_.take();
    bytes.insert(bytes.end(), pairs.begin(), pairs.end());
    bytes.insert(bytes.end(), tensors.begin(), tensors.end());
    header_bytes_ = bytes.size();
    bytes.resize((bytes.size() + alignment - 1) / alignment * alignment + data_bytes_, 0x3c);
    return {bytes.begin(), bytes.end()};
  }
  size_t header_bytes() const { return header_bytes_; }  // after build()

 private:
  void begin(std::string_view key, uint32_t type) {
    ++num_pairs_;
    put_text(pairs_, key);
    pairs_.put(type);
  }
  template <typename T>
  GgufBuilder& scalar(std::string_view key, uint32_t type, T value) {
    begin(key, type);
    pairs_.put(value);
    return *this;
  }

  ByteWriter pairs_;
  ByteWriter tensors_;
  uint64_t num_pairs_ = 0;
  int64_t num_tensors_ = 0;
  uint64_t data_bytes_ = 0;
  size_t header_bytes_ = 0;
};

// The smallest llama that opens: 1 layer, hidden 32, 2 heads, 4 tokens, all F32. `last` is the
// fourth token.
inline GgufBuilder small_llama(const std::string& last = "ab", int32_t last_type = 1,
    const std::string& arch = "llama", uint32_t context = 64) {
  GgufBuilder gguf;
  gguf.text("general.architecture", arch)
      .u32(arch + ".block_count", 1)
      .u32(arch + ".context_length", context)
      .u32(arch + ".embedding_length", 32)
      .u32(arch + ".feed_forward_length", 32)
      .u32(arch + ".attention.head_count", 2)
      .u32(arch + ".attention.head_count_kv", 1)
      .f32(arch + ".attention.layer_norm_rms_epsilon", 1e-5f)
      .text("tokenizer.ggml.model", "gpt2")
      .text("tokenizer.ggml.pre", "gpt-2")
      .texts("tokenizer.ggml.tokens", {"<s>", "a", "b", last})
      .texts("tokenizer.ggml.merges", {"a b"})
      .i32s("tokenizer.ggml.token_type", {3, 1, 1, last_type})
      .u32("tokenizer.ggml.eos_token_id", 0);
  const auto f32 = [&](std::string_view name, const std::vector<uint64_t>& dims) {
    uint64_t bytes = 4;
    for (const uint64_t dim : dims) bytes *= dim;
    gguf.tensor(name, dims, 0, bytes);
  };
  f32("token_embd.weight", {32, 4});
  f32("output_norm.weight", {32});
  f32("blk.0.attn_norm.weight", {32});
  f32("blk.0.attn_q.weight", {32, 32});
  f32("blk.0.attn_k.weight", {32, 16});
  f32("blk.0.attn_v.weight", {32, 16});
  f32("blk.0.attn_output.weight", {32, 32});
  f32("blk.0.ffn_norm.weight", {32});
  f32("blk.0.ffn_gate.weight", {32, 32});
  f32("blk.0.ffn_up.weight", {32, 32});
  f32("blk.0.ffn_down.weight", {32, 32});
  return gguf;
}

}  // namespace millrace
