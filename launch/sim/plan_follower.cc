#include "launch/sim/plan_follower.h"

namespace millrace {

Bytes ready_frame(int rank, uint32_t num_blocks, uint32_t epoch) {
  const Ready ready{.rank = rank,
      .weight_bytes = 1,
      .kv_bytes_per_block = 1,
      .num_blocks = num_blocks,
      .config_hash = 1,
      .description = "simulated"};
  return make_frame(FrameType::kReady, epoch, encode(ready));
}

Bytes started_frame(uint32_t epoch) { return make_frame(FrameType::kStarted, epoch, {}); }

LayerWork PlanFollower::follow(const StepPlan& plan) {
  for (const Admission& admission : plan.admissions) {
    slots_[admission.slot] = {admission.num_computed, admission.num_prompt};
  }
  LayerWork work;
  for (const Row& row : plan.rows) {
    Slot& slot = slots_[row.slot];
    const auto before = static_cast<double>(slot.num_computed);
    const double count = row.count;
    work.tokens += count;
    work.has_decode |= slot.num_computed >= slot.num_prompt;
    if (row.count == 1) {
      ++work.decode_rows;
      work.decode_keys += before + 1;
    } else {
      work.prefill_keys += count * (before + (count + 1) / 2);
    }
    work.outputs += static_cast<double>(row.num_sampled() + row.num_scored());
    slot.num_computed += row.count;
  }
  return work;
}

StepResult PlanFollower::answer(const StepPlan& plan, int stage, bool is_last) {
  StepResult result;
  result.sequence = plan.sequence;
  result.stage = static_cast<uint16_t>(stage);
  if (!is_last) return result;
  for (const Row& row : plan.rows) {
    if (row.output == Output::kNone) continue;
    RowResult& sampled = result.rows.emplace_back();
    sampled.slot = row.slot;
    sampled.tokens.resize(row.num_sampled());
    sampled.scored.resize(row.num_scored());
  }
  return result;
}

}  // namespace millrace
