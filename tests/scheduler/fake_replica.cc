#include "tests/scheduler/fake_replica.h"

#include <gtest/gtest.h>

#include "engine/base/hash.h"

namespace millrace {

int32_t fake_token(int32_t key, int64_t position) {
  const uint64_t draw =
      hash_combine(static_cast<uint64_t>(key), static_cast<uint64_t>(position)) % 4000;
  return draw < 16 ? -1 : static_cast<int32_t>(draw % kFakeVocabulary);
}

FakeReplica::FakeReplica(const SchedulerConfig& config)
    : config_(config),
      table_(config.max_num_seqs, config.block_size, config.num_blocks),
      slots_(static_cast<size_t>(config.max_num_seqs)),
      cells_(static_cast<size_t>(config.num_blocks) * static_cast<size_t>(config.block_size)) {}

StepResult FakeReplica::run(const StepPlan& plan) {
  EXPECT_EQ(table_.apply(plan), "");
  EXPECT_EQ(table_.hash(), plan.slot_hash);
  EXPECT_LE(plan.num_tokens(), config_.max_num_batched_tokens);
  for (const Admission& admission : plan.admissions) {
    const auto& ids = admission.token_ids;
    Slot& slot = slots_[admission.slot] = {};
    slot.key = ids[0];
    slot.num_admitted = static_cast<int64_t>(ids.size());
    slot.prompt.assign(ids.begin(), ids.begin() + admission.num_prompt);
    for (size_t i = 0; i < ids.size(); ++i) {
      slot.know(ids[i]);
      if (i >= admission.num_prompt) {  // it comes back with what it sampled before
        EXPECT_EQ(ids[i], fake_token(slot.key, static_cast<int64_t>(i)));
      }
    }
  }
  StepResult result;
  result.sequence = plan.sequence;
  result.stage = static_cast<uint16_t>(config_.pp - 1);
  result.compute_us = 500 + static_cast<uint32_t>(plan.num_tokens()) * 10;
  for (const Row& row : plan.rows) run_row(plan, row, result);
  return result;
}

FakeReplica::Cell& FakeReplica::cell(uint16_t slot, int64_t position) {
  const auto& blocks = table_.slot(slot).blocks;
  const int64_t block = blocks.at(static_cast<size_t>(position / config_.block_size));
  return cells_[static_cast<size_t>(block * config_.block_size + position % config_.block_size)];
}

void FakeReplica::run_row(const StepPlan& plan, const Row& row, StepResult& result) {
  Slot& slot = slots_[row.slot];
  const int64_t end = table_.slot(row.slot).num_computed;
  const int64_t begin = end - row.count;
  ASSERT_LE(end, slot.num_ids()) << "plan " << plan.sequence << " computes an id nobody sampled";
  for (int64_t p = begin; p < end; ++p) {
    if (p >= slot.num_admitted) {  // the id has to have come from the last stage to the first
      const uint64_t sampled = slot.sampled_in[static_cast<size_t>(p - slot.num_admitted)];
      EXPECT_LE(sampled + static_cast<uint64_t>(config_.pp), plan.sequence);
    }
    cell(row.slot, p) = {slot.contents[static_cast<size_t>(p)], p};
  }
  // What this row attends to is of its own ids, whoever computed it.
  for (int64_t p = 0; p < begin; ++p) {
    const Cell& seen = cell(row.slot, p);
    ASSERT_TRUE(seen.content == slot.contents[static_cast<size_t>(p)] && seen.position == p)
        << "plan " << plan.sequence << ", slot " << row.slot << ", position " << p;
  }
  EXPECT_EQ(samples(row.output), end >= slot.num_admitted);
  if (row.output == Output::kNone) return;
  RowResult& out = result.rows.emplace_back();
  out.slot = row.slot;
  for (int64_t p = begin; p < begin + static_cast<int64_t>(row.num_scored()); ++p) {
    ASSERT_LT(p + 1, static_cast<int64_t>(slot.prompt.size())) << "no id of the prompt is next";
    out.scored.push_back({slot.prompt[static_cast<size_t>(p + 1)], -static_cast<float>(p + 1), {}});
  }
  if (!samples(row.output)) return;
  ASSERT_EQ(end, slot.num_ids()) << "a token is sampled twice";
  const int32_t token = fake_token(slot.key, end);
  if (token < 0) {
    out.status = RowStatus::kNonFinite;
    out.scored.clear();
  } else {
    out.tokens.push_back({token, 0, {}});
  }
  slot.sampled_in.push_back(plan.sequence);
  slot.know(token);
}

}  // namespace millrace
