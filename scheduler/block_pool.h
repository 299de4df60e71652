// The KV block ids of a replica. A Block is a counted value: copying shares it, and the last one
// to go returns the id. One thread.
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
  uint32_t num_free() const { return static_cast<uint32_t>(free_.size()); }
  // CHECKs num_free() > 0: admission counted before.
  Block allocate();

 private:
  friend class Block;
  void retain(BlockId id);
  void release(BlockId id);
  std::vector<uint32_t> counts_;
  std::vector<BlockId> free_;
};

}  // namespace millrace
