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

BlockPool::BlockPool(uint32_t num_blocks)
    : counts_(num_blocks), kept_(num_blocks), ring_(num_blocks + 1), num_free_(num_blocks) {
  for (BlockId id = 0; id <= num_blocks; ++id) {  // block 0 goes first
    ring_[id] = {id == 0 ? num_blocks : id - 1, id == num_blocks ? 0 : id + 1};
  }
}

BlockPool::~BlockPool() {
  CHECK(num_free() == num_blocks(), "{} of {} blocks are still held", num_blocks() - num_free(),
      num_blocks());
}

Block BlockPool::allocate() {
  CHECK(num_free_ > 0, "no block is free of {}", num_blocks());
  const BlockId id = ring_[num_blocks()].after;
  unlink(id);
  kept_[id] = false;
  counts_[id] = 1;
  return Block(this, id);
}

Block BlockPool::share(BlockId id) {
  CHECK(kept_[id], "block {} is not kept", id);
  if (counts_[id] == 0) unlink(id);
  ++counts_[id];
  return Block(this, id);
}

void BlockPool::unlink(BlockId id) {
  const Link link = ring_[id];
  ring_[link.before].after = link.after;
  ring_[link.after].before = link.before;
  --num_free_;
}

void BlockPool::retain(BlockId id) {
  CHECK(counts_[id] > 0, "block {} is free", id);
  ++counts_[id];
}

void BlockPool::release(BlockId id) {
  CHECK(counts_[id] > 0, "block {} is free", id);
  if (--counts_[id] > 0) return;
  const BlockId end = num_blocks();
  Link& link = ring_[id];
  link.before = kept_[id] ? ring_[end].before : end;
  link.after = kept_[id] ? end : ring_[end].after;
  ring_[link.before].after = id;
  ring_[link.after].before = id;
  ++num_free_;
}

}  // namespace millrace
