#include "scheduler/block_pool.h"

#include <utility>

namespace millrace {

Block::Block(const Block& other) : pool_(other.pool_), id_(other.id_) {
  if (pool_ != nullptr) pool_->retain(id_);
}

Block::Block(Block&& other) noexcept : pool_(std::exchange(other.pool_, nullptr)), id_(other.id_) {}

Block& Block::operator=(Block other) noexcept {
  std::swap(pool_, other.pool_);
  std::swap(id_, other.id_);
  return *this;
}

Block::~Block() {
  if (pool_ != nullptr) pool_->release(id_);
}

BlockPool::BlockPool(uint32_t num_blocks) : counts_(num_blocks) {
  free_.reserve(num_blocks);
  for (uint32_t id = num_blocks; id > 0; --id) free_.push_back(id - 1);  // block 0 goes first
}

BlockPool::~BlockPool() {
  CHECK(num_free() == num_blocks(), "{} of {} blocks are still held", num_blocks() - num_free(),
      num_blocks());
}

Block BlockPool::allocate() {
  CHECK(!free_.empty(), "no block is free of {}", num_blocks());
  const BlockId id = free_.back();
  free_.pop_back();
  counts_[id] = 1;
  return Block(this, id);
}

void BlockPool::retain(BlockId id) {
  CHECK(counts_[id] > 0, "block {} is free", id);
  ++counts_[id];
}

void BlockPool::release(BlockId id) {
  CHECK(counts_[id] > 0, "block {} is free", id);
  if (--counts_[id] == 0) free_.push_back(id);
}

}  // namespace millrace
