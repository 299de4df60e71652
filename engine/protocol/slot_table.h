// What a replica's slots hold, advanced by plans alone. The scheduler keeps one and every rank
// keeps one; their hashes must agree before a step is launched. Used from one thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/protocol/step.h"

namespace millrace {

class SlotTable {
 public:
  struct Slot {
    bool active = false;
    uint32_t num_computed = 0;    // the next position to compute
    std::vector<BlockId> blocks;  // block b holds positions [b * block_size, ...)
  };

  SlotTable(int num_slots, int block_size, uint32_t num_blocks);

  // Releases, admissions, then each row's new blocks and count. Returns an empty string, or what is
  // wrong with the plan (a slot out of range or not active, admitted twice or in two rows, a row
  // past its blocks, a block id out of range, a sequence number out of turn); the table is not to
  // be used after that.
  std::string apply(const StepPlan& plan);

  const Slot& slot(uint16_t index) const { return slots_[index]; }
  int num_slots() const { return static_cast<int>(slots_.size()); }
  int block_size() const { return block_size_; }
  uint64_t next_sequence() const { return next_sequence_; }
  // Over every active slot's number, position and blocks, and the sequence number. Token ids are
  // not in it: they are not known to all ranks.
  uint64_t hash() const;

 private:
  std::string apply_row(const Row& row);

  std::vector<Slot> slots_;
  std::vector<uint64_t> slot_hashes_;  // of blocks only; kept as plans append to them
  std::vector<uint64_t> last_rows_;    // 1 + sequence number of the slot's last row
  int block_size_;
  uint32_t num_blocks_;
  uint64_t next_sequence_ = 0;
};

}  // namespace millrace
