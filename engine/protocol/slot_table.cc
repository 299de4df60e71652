#include "engine/protocol/slot_table.h"

#include <fmt/format.h>

#include "engine/base/check.h"
#include "engine/base/hash.h"

namespace millrace {

SlotTable::SlotTable(int num_slots, int block_size, uint32_t num_blocks)
    : slots_(static_cast<size_t>(num_slots)),
      slot_hashes_(slots_.size()),
      last_rows_(slots_.size()),
      block_size_(block_size),
      num_blocks_(num_blocks) {
  CHECK(num_slots >= 1 && num_slots <= 65536 && block_size >= 1, "{} slots, blocks of {}",
      num_slots, block_size);
}

std::string SlotTable::apply(const StepPlan& plan) {
  if (plan.sequence != next_sequence_) {
    return fmt::format("plan {} came where plan {} was due", plan.sequence, next_sequence_);
  }
  ++next_sequence_;
  for (const uint16_t index : plan.releases) {
    if (index >= slots_.size() || !slots_[index].active) {
      return fmt::format("slot {} is released but not active", index);
    }
    slots_[index].active = false;
  }
  for (const Admission& admission : plan.admissions) {
    if (admission.slot >= slots_.size() || slots_[admission.slot].active) {
      return fmt::format("slot {} is admitted but active already, or not one of {}", admission.slot,
          slots_.size());
    }
    Slot& slot = slots_[admission.slot];
    slot.active = true;
    slot.num_computed = admission.num_computed;
    slot.blocks.clear();  // keeps its memory for the next sequence
    slot_hashes_[admission.slot] = 0;
  }
  for (const Row& row : plan.rows) {
    if (std::string wrong = apply_row(row); !wrong.empty()) return wrong;
  }
  return "";
}

std::string SlotTable::apply_row(const Row& row) {
  if (row.slot >= slots_.size() || !slots_[row.slot].active) {
    return fmt::format("a row names slot {}, which is not active", row.slot);
  }
  if (last_rows_[row.slot] == next_sequence_) {
    return fmt::format("slot {} has two rows in one plan", row.slot);
  }
  last_rows_[row.slot] = next_sequence_;
  if (row.count < 1 || row.count > kMaxRowTokens) {
    return fmt::format("slot {} gets {} tokens in one plan", row.slot, row.count);
  }
  Slot& slot = slots_[row.slot];
  for (const BlockId block : row.new_blocks) {
    if (block >= num_blocks_ || slot.blocks.size() >= num_blocks_) {
      return fmt::format("slot {} gets block {} of {}", row.slot, block, num_blocks_);
    }
    slot.blocks.push_back(block);
    slot_hashes_[row.slot] = hash_combine(slot_hashes_[row.slot], block);
  }
  const uint64_t end = uint64_t{slot.num_computed} + row.count;
  if (end > slot.blocks.size() * static_cast<uint64_t>(block_size_)) {
    return fmt::format("slot {} goes to position {} with {} blocks of {}", row.slot, end,
        slot.blocks.size(), block_size_);
  }
  if (end > UINT32_MAX) return fmt::format("slot {} goes to position {}", row.slot, end);
  slot.num_computed = static_cast<uint32_t>(end);
  return "";
}

uint64_t SlotTable::hash() const {
  uint64_t hash = next_sequence_;
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (!slots_[i].active) continue;
    hash = hash_combine(hash, uint64_t{i} << 32 | slots_[i].num_computed);
    hash = hash_combine(hash, slot_hashes_[i]);
  }
  return hash;
}

}  // namespace millrace
