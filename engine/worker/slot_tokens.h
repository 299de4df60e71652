// What a rank knows of each slot's text: ids and sampling parameters, for the stages that need
// them (the first looks up its inputs, the last samples). Compute thread only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/protocol/step.h"

namespace millrace {

class SlotTokens {
 public:
  explicit SlotTokens(int num_slots) : slots_(static_cast<size_t>(num_slots)) {}

  struct Slot {
    std::vector<int32_t> ids;  // prompt and everything sampled that has arrived here
    uint32_t num_prompt = 0;
    SamplingParams sampling;
    uint32_t generation = 0;  // counts admissions: ids meant for a former tenant are dropped
    std::span<const int32_t> prompt() const { return std::span(ids).first(num_prompt); }
    std::span<const int32_t> output() const { return std::span(ids).subspan(num_prompt); }
  };

  void admit(const Admission& admission) {
    Slot& slot = slots_[admission.slot];
    slot.ids = admission.token_ids;
    slot.num_prompt = admission.num_prompt;
    slot.sampling = admission.sampling;
    ++slot.generation;
  }
  const Slot& operator[](uint16_t slot) const { return slots_[slot]; }
  // Appends a sampled id unless the slot has a new tenant since.
  void append(uint16_t slot, uint32_t generation, int32_t id) {
    if (slots_[slot].generation == generation) slots_[slot].ids.push_back(id);
  }

 private:
  std::vector<Slot> slots_;
};

}  // namespace millrace
