// A 64-bit mixing function for tables inside the process and between our own ranks. Not for
// anything a client chooses: such keys get a keyed hash.
#pragma once

#include <cstdint>

namespace millrace {

// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): a bijection that mixes every bit.
constexpr uint64_t mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

constexpr uint64_t hash_combine(uint64_t seed, uint64_t value) {
  return mix64(seed ^ mix64(value));
}

}  // namespace millrace
