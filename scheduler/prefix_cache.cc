#include "scheduler/prefix_cache.h"

#include <algorithm>
#include <array>

namespace millrace {

namespace {

constexpr size_t kMaxBlockSize = 64;

}  // namespace

PrefixCache::PrefixCache(BlockPool& pool, int32_t block_size, const SipKey& key)
    : pool_(pool),
      block_size_(static_cast<size_t>(block_size)),
      key_(key),
      entries_(pool.num_blocks()),
      ids_(pool.num_blocks() * block_size_) {
  CHECK(block_size_ <= kMaxBlockSize, "blocks of {}", block_size);
}

uint64_t PrefixCache::hash_of(const Chain& chain, std::span<const int32_t> ids) const {
  std::array<uint8_t, sizeof(Chain) + 4 * kMaxBlockSize> bytes;
  std::memcpy(bytes.data(), &chain, sizeof chain);
  std::memcpy(bytes.data() + sizeof chain, ids.data(), ids.size_bytes());
  return siphash(key_, {bytes.data(), sizeof chain + ids.size_bytes()});
}

const PrefixCache::Entry* PrefixCache::find_entry(
    uint64_t hash, const Chain& chain, std::span<const int32_t> ids) const {
  const auto found = blocks_.find(hash);
  if (found == blocks_.end() || !pool_.kept(found->second)) return nullptr;
  const Entry& entry = entries_[found->second];
  const bool same = entry.hash == hash && entry.before.salt == chain.salt &&
                    entry.before.serial == chain.serial &&
                    std::equal(ids.begin(), ids.end(), &ids_[entry.block * block_size_]);
  return same ? &entry : nullptr;
}

const BlockId* PrefixCache::find(Chain& chain, std::span<const int32_t> ids, uint64_t* plan) const {
  const Entry* entry = find_entry(hash_of(chain, ids), chain, ids);
  if (entry == nullptr) return nullptr;
  chain.serial = entry->serial;
  *plan = entry->plan;
  return &entry->block;
}

void PrefixCache::add(
    Chain& chain, std::span<const int32_t> ids, const Block& block, uint64_t plan) {
  CHECK(ids.size() == block_size_, "{} ids in a block of {}", ids.size(), block_size_);
  const uint64_t hash = hash_of(chain, ids);
  if (const Entry* known = find_entry(hash, chain, ids)) {
    chain.serial = known->serial;
    return;
  }
  Entry& entry = entries_[block.id()];
  const auto old = blocks_.find(entry.hash);
  if (old != blocks_.end() && old->second == block.id()) blocks_.erase(old);
  // Of two different contents with one hash the newer is found; the older is kept for nothing.
  blocks_[hash] = block.id();
  entry = {block.id(), chain, hash, ++last_serial_, plan};
  std::copy(ids.begin(), ids.end(), &ids_[block.id() * block_size_]);
  pool_.keep(block.id(), true);
  chain.serial = entry.serial;
}

}  // namespace millrace
