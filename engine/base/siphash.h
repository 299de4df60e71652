// SipHash-2-4 (Aumasson and Bernstein 2012): a keyed hash for tables whose keys a client chooses.
// Who does not know the key cannot make keys that collide.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>

namespace millrace {

using SipKey = std::array<uint64_t, 2>;

// From the operating system; nobody outside this process knows it.
inline SipKey random_sip_key() {
  std::random_device source;  // the kernel's generator or the processor's, never a seeded one
  const auto word = [&] { return uint64_t{source()} << 32 | source(); };
  return {word(), word()};
}

inline uint64_t siphash(const SipKey& key, std::span<const uint8_t> data) {
  static_assert(std::endian::native == std::endian::little);
  uint64_t a = key[0] ^ 0x736f6d6570736575, b = key[1] ^ 0x646f72616e646f6d;
  uint64_t c = key[0] ^ 0x6c7967656e657261, d = key[1] ^ 0x7465646279746573;
  const auto rounds = [&](int count) {
    for (int i = 0; i < count; ++i) {
      a += b, b = std::rotl(b, 13) ^ a, a = std::rotl(a, 32);
      c += d, d = std::rotl(d, 16) ^ c;
      a += d, d = std::rotl(d, 21) ^ a;
      c += b, b = std::rotl(b, 17) ^ c, c = std::rotl(c, 32);
    }
  };
  const auto take = [&](uint64_t word) {
    d ^= word;
    rounds(2);
    a ^= word;
  };
  size_t at = 0;
  for (uint64_t word = 0; at + 8 <= data.size(); at += 8) {
    std::memcpy(&word, data.data() + at, 8);
    take(word);
  }
  uint64_t last = uint64_t{data.size()} << 56;
  if (at < data.size()) {
    uint64_t rest = 0;
    std::memcpy(&rest, data.data() + at, data.size() - at);
    last |= rest;
  }
  take(last);
  c ^= 0xff;
  rounds(4);
  return a ^ b ^ c ^ d;
}

}  // namespace millrace
