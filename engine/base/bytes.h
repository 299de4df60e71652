// Little-endian writing and bounds-checked reading of flat bytes: the only way values cross a
// process boundary. No object is ever serialized; a reader that runs short turns bad and stays so.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace millrace {

static_assert(std::endian::native == std::endian::little, "frames are written as stored");

using Bytes = std::vector<uint8_t>;

template <typename T>
concept Scalar = std::is_arithmetic_v<T> || std::is_enum_v<T>;

class ByteWriter {
 public:
  template <Scalar T>
  void put(T value) {
    const auto* p = reinterpret_cast<const uint8_t*>(&value);
    bytes_.insert(bytes_.end(), p, p + sizeof(T));
  }
  template <Scalar T>
  void put_array(std::span<const T> values) {  // u32 count, then the values
    put(static_cast<uint32_t>(values.size()));
    const auto* p = reinterpret_cast<const uint8_t*>(values.data());
    bytes_.insert(bytes_.end(), p, p + values.size_bytes());
  }
  void put_string(std::string_view s) { put_array(std::span<const char>(s.data(), s.size())); }
  // Writes `value` over bytes already put, for lengths known late.
  template <Scalar T>
  void patch(size_t offset, T value) {
    std::memcpy(bytes_.data() + offset, &value, sizeof(T));
  }
  size_t size() const { return bytes_.size(); }
  Bytes take() { return std::move(bytes_); }

 private:
  Bytes bytes_;
};

class ByteReader {
 public:
  explicit ByteReader(std::span<const uint8_t> bytes) : rest_(bytes) {}

  template <Scalar T>
  T get() {
    T value{};
    if (const uint8_t* p = advance(sizeof(T))) std::memcpy(&value, p, sizeof(T));
    return value;
  }
  template <Scalar T>
  std::vector<T> get_array() {
    const auto count = get<uint32_t>();
    std::vector<T> values;
    // Checked before memory is taken: a count can never ask for more than the frame holds.
    if (const uint8_t* p = advance(size_t{count} * sizeof(T)); p != nullptr && count > 0) {
      values.resize(count);
      std::memcpy(values.data(), p, values.size() * sizeof(T));
    }
    return values;
  }
  std::string get_string() {
    const auto chars = get_array<char>();
    return std::string(chars.begin(), chars.end());
  }
  // The next `size` bytes as a reader of their own (a section).
  ByteReader sub(size_t size) {
    const uint8_t* p = advance(size);
    return ByteReader(
        p != nullptr ? std::span<const uint8_t>(p, size) : std::span<const uint8_t>());
  }
  bool ok() const { return ok_; }
  bool done() const { return ok_ && rest_.empty(); }
  size_t remaining() const { return rest_.size(); }

 private:
  const uint8_t* advance(size_t size) {
    if (!ok_ || size > rest_.size()) {
      ok_ = false;
      rest_ = {};
      return nullptr;
    }
    const uint8_t* p = rest_.data();
    rest_ = rest_.subspan(size);
    return p;
  }
  std::span<const uint8_t> rest_;
  bool ok_ = true;
};

}  // namespace millrace
