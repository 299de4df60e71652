#include "engine/kernels/cpu/cpu_ops.h"

#include <algorithm>

namespace millrace {

namespace {

// Element `index` of a slot's row.
int32_t& at(const TensorView& table, int32_t slot, int32_t index) {
  CHECK(slot >= 0 && slot < table.rows() && index >= 0 && index < table.cols(),
      "slot {} of {}, index {} of {}", slot, table.rows(), index, table.cols());
  return table.row_as<int32_t>(slot)[index];
}

void update_slots(const StepHeader& step, const int32_t* arrived, const SlotState& slots) {
  const auto* words = reinterpret_cast<const int32_t*>(&step);
  const auto* admissions = reinterpret_cast<const AdmittedSlot*>(words + step.admissions);
  for (int32_t i = 0; i < step.num_admissions; ++i) {
    const AdmittedSlot& from = admissions[i];
    CHECK(from.num_ids > 0 && from.num_prompt <= from.num_ids && from.num_ids <= slots.ids.cols());
    std::copy_n(words + step.ids + from.first_id, from.num_ids, &at(slots.ids, from.slot, 0));
    slots.num_prompt[from.slot] = from.num_prompt;
    slots.sampling[from.slot] = from.sampling;
    CHECK(from.num_biases >= 0 && from.num_biases <= kMaxLogitBias);
    slots.num_biases[from.slot] = from.num_biases;
    std::copy_n(reinterpret_cast<const TokenBias*>(words + step.ids + from.first_id + from.num_ids),
        from.num_biases, slots.biases + int64_t{from.slot} * kMaxLogitBias);
  }
  const int32_t* block = words + step.new_blocks;
  for (int32_t i = 0; i < step.num_new_blocks; ++i, block += 3) {
    at(slots.block_tables, block[0], block[1]) = block[2];
  }
  const int32_t* arrival = words + step.arrivals;
  for (int32_t i = 0; i < step.num_arrivals; ++i, arrival += 3) {
    at(slots.ids, arrival[0], arrival[1]) = arrived[arrival[2]];
  }
}

}  // namespace

void begin_step(const StepHeader& step, const int32_t* arrived, const SlotState& slots,
    const StepArrays& arrays, const BatchView& batch) {
  const auto* words = reinterpret_cast<const int32_t*>(&step);
  const int32_t* cu_tokens = words + step.cu_tokens;
  CHECK(step.num_sequences == batch.num_sequences() && step.num_tokens == batch.num_tokens &&
            cu_tokens[0] == 0 && cu_tokens[step.num_sequences] == step.num_tokens,
      "{} sequences of {} tokens, not {} of {}", step.num_sequences, step.num_tokens,
      batch.num_sequences(), batch.num_tokens);
  update_slots(step, arrived, slots);
  for (int32_t s = 0; s < step.num_sequences; ++s) {
    const int32_t slot = words[step.slots + s];
    const int32_t first = words[step.first + s];
    const int32_t count = cu_tokens[s + 1] - cu_tokens[s];
    CHECK(count > 0, "row {} has {} tokens", s, count);
    arrays.block_tables[s] = arrays.padding_block;
    if (slot >= 0) {
      arrays.block_tables[s] = reinterpret_cast<uint32_t*>(&at(slots.block_tables, slot, 0));
    }
    for (int32_t i = 0; i < count; ++i) {
      arrays.ids[cu_tokens[s] + i] = slot < 0 ? 0 : at(slots.ids, slot, first + i);
      arrays.positions[cu_tokens[s] + i] = slot < 0 ? 0 : first + i;
    }
  }
  for (int32_t r = 0; r < step.num_outputs; ++r) {
    const int32_t t = words[step.outputs + r];
    CHECK(t >= 0 && t < step.num_tokens, "output {} is token {} of {}", r, t, step.num_tokens);
    const auto s = std::upper_bound(cu_tokens, cu_tokens + step.num_sequences, t) - cu_tokens - 1;
    const int32_t slot = words[step.slots + s];
    const int32_t num_ids = words[step.first + s] + t + 1 - cu_tokens[s];
    arrays.output_tokens[r] = t;
    arrays.sample_rows[r] = SampleRow();
    if (slot < 0) continue;  // nobody samples it
    const bool scored = r >= step.num_outputs - step.num_scored;
    arrays.sample_rows[r] = {&slots.sampling[slot], static_cast<uint64_t>(num_ids),
        &at(slots.ids, slot, 0), slots.num_prompt[slot], num_ids,
        slots.biases + int64_t{slot} * kMaxLogitBias, slots.num_biases[slot],
        scored ? at(slots.ids, slot, num_ids) : -1};
  }
}

}  // namespace millrace
