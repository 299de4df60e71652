// Which blocks hold the KV of which token ids, so that sequences with a common beginning share
// them. Knows full blocks only. A block is found by a keyed hash of the block before it and its own
// ids, and the ids are compared. One thread.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/base/siphash.h"
#include "scheduler/block_pool.h"

namespace millrace {

class PrefixCache {
 public:
  // A run of blocks from position 0 on, named by its last one: what follows hangs on it.
  // A new run begins with {salt, 0}; runs of different salts never meet.
  struct Chain {
    uint64_t salt = 0;
    uint64_t serial = 0;
  };

  PrefixCache(BlockPool& pool, int32_t block_size, const SipKey& key);

  // The block that holds `ids` after `chain`, which moves on to it; null if none does. `*plan` is
  // the one that computes it. Valid until the next allocate().
  const BlockId* find(Chain& chain, std::span<const int32_t> ids, uint64_t* plan) const;
  // `block` gets `ids` after `chain` by the plan of that number, or by an earlier one. `chain`
  // moves on to it, or to the block that held them already: two of one content are not kept.
  void add(Chain& chain, std::span<const int32_t> ids, const Block& block, uint64_t plan);

 private:
  struct Entry {
    BlockId block = 0;
    Chain before;
    uint64_t hash = 0;
    uint64_t serial = 0;  // never used twice, so that nothing hangs on an evicted block
    uint64_t plan = 0;
  };
  uint64_t hash_of(const Chain& chain, std::span<const int32_t> ids) const;
  const Entry* find_entry(uint64_t hash, const Chain& chain, std::span<const int32_t> ids) const;

  BlockPool& pool_;
  const size_t block_size_;
  const SipKey key_;
  // Entries of blocks that are no longer kept are void; they go when their block gets another.
  std::unordered_map<uint64_t, BlockId> blocks_;  // by hash
  std::vector<Entry> entries_;                    // by block
  std::vector<int32_t> ids_;                      // [blocks, block_size]
  uint64_t last_serial_ = 0;
};

}  // namespace millrace
