// Little-endian writing and bounds-checked reading of flat bytes: the only way values cross a
// process boundary. No object is ever serialized; a reader that runs short turns bad and stays so.
//
// A struct that crosses names its fields once, for both ways, next to its definition:
//   void fields(auto& io, Is<Start> auto& start) { io(start.num_blocks); }
//   bool within_limits(const Start& start);
// and encode() and decode() serve it.
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace millrace {

static_assert(std::endian::native == std::endian::little, "frames are written as stored");

using Bytes = std::vector<uint8_t>;

template <typename T>
concept Scalar = std::is_arithmetic_v<T> || std::is_enum_v<T>;

// T itself, const or not: what a field list is written for.
template <typename T, typename Struct>
concept Is = std::same_as<std::remove_const_t<T>, Struct>;

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
  // Each value in turn: scalars as stored, strings and vectors of scalars with their count, structs
  // by their fields().
  template <typename... T>
  void operator()(const T&... values) {
    (add(values), ...);
  }
  // A count, then each struct; the reader refuses more than `max`.
  template <typename T>
  void list(const std::vector<T>& values, size_t /*max*/) {
    put(static_cast<uint32_t>(values.size()));
    for (const T& value : values) add(value);
  }
  // A sentence, cut to `max` bytes: the peer would refuse all of a longer one.
  void text(std::string_view s, size_t max) { put_string(s.substr(0, max)); }
  // Writes `value` over bytes already put, for lengths known late.
  template <Scalar T>
  void patch(size_t offset, T value) {
    std::memcpy(bytes_.data() + offset, &value, sizeof(T));
  }
  size_t size() const { return bytes_.size(); }
  Bytes take() { return std::move(bytes_); }

 private:
  template <typename T>
  void add(const T& value) {
    if constexpr (Scalar<T>) {
      put(value);
    } else if constexpr (requires { std::span(value); }) {
      put_array(std::span(value));
    } else {
      fields(*this, value);
    }
  }
  Bytes bytes_;
};

class ByteReader {
 public:
  explicit ByteReader(std::span<const uint8_t> bytes) : rest_(bytes) {}

  template <Scalar T>
  T get() {
    if constexpr (std::same_as<T, bool>) {  // no other byte than what a writer puts
      const auto byte = get<uint8_t>();
      ok_ &= byte <= 1;
      return byte == 1;
    }
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
  // The same values that a ByteWriter was called with.
  template <typename... T>
  void operator()(T&... values) {
    (read(values), ...);
  }
  // Turns bad at a count above `max`. Memory is taken as elements come, so that a count alone can
  // never ask for more than the frame holds.
  template <typename T>
  void list(std::vector<T>& values, size_t max) {
    const auto count = get<uint32_t>();
    ok_ &= count <= max;
    while (ok_ && values.size() < count) read(values.emplace_back());
  }
  void text(std::string& s, size_t max) {
    s = get_string();
    ok_ &= s.size() <= max;
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
  template <typename T>
  void read(T& value) {
    if constexpr (Scalar<T>) {
      value = get<T>();
    } else if constexpr (std::same_as<T, std::string>) {
      value = get_string();
    } else if constexpr (requires { std::span(value); }) {
      value = get_array<typename T::value_type>();
    } else {
      fields(*this, value);
    }
  }
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

// Any struct with fields().
template <typename T>
Bytes encode(const T& value) {
  ByteWriter out;
  out(value);
  return out.take();
}

// False, and `value` as it was, when the bytes are not exactly one T within its limits.
template <typename T>
bool decode(std::span<const uint8_t> bytes, T* value) {
  ByteReader in(bytes);
  T read;
  in(read);
  if (!in.done() || !within_limits(std::as_const(read))) return false;
  *value = std::move(read);
  return true;
}

}  // namespace millrace
