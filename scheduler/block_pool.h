// The KV block ids of a replica. A Block is a counted value: copying shares it, and the last one
// to go returns the id. A block that is kept for its contents can be taken again after that, until
// allocate() needs it: the one free for longest goes first. One thread.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/base/check.h"
#include "engine/protocol/step.h"

namespace millrace {

class BlockPool;

class Block {
 public:
  Block() = default;
  Block(const Block& other);
  Block(Block&& other) noexcept;
  Block& operator=(Block other) noexcept;
  ~Block();
  BlockId id() const { return id_; }

 private:
  friend class BlockPool;
  Block(BlockPool* pool, BlockId id) : pool_(pool), id_(id) {}
  BlockPool* pool_ = nullptr;
  BlockId id_ = 0;
};

class BlockPool {
 public:
  explicit BlockPool(uint32_t num_blocks);
  // CHECKs that every block came home.
  ~BlockPool();
  BlockPool(const BlockPool&) = delete;

  uint32_t num_blocks() const { return static_cast<uint32_t>(counts_.size()); }
  uint32_t num_free() const { return num_free_; }  // kept ones included
  uint32_t count(BlockId id) const { return counts_[id]; }

  // CHECKs num_free() > 0: admission counted before. The block is not kept.
  Block allocate();

  // A block in use is kept for its contents, or no longer.
  void keep(BlockId id, bool on) { kept_[id] = on; }
  bool kept(BlockId id) const { return kept_[id]; }
  // Another copy of a kept block, free or in use.
  Block share(BlockId id);

 private:
  friend class Block;
  void retain(BlockId id);
  void release(BlockId id);
  void unlink(BlockId id);

  std::vector<uint32_t> counts_;
  std::vector<bool> kept_;
  // A ring of the free blocks through the entry num_blocks: first those not kept, the last one
  // released ahead; then kept ones in the order of their release.
  struct Link {
    BlockId before = 0;
    BlockId after = 0;
  };
  std::vector<Link> ring_;
  uint32_t num_free_ = 0;
};

}  // namespace millrace
