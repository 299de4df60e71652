// The slot table: what it keeps, what its hash sees, and every refusal.
#include "engine/protocol/slot_table.h"

#include <gtest/gtest.h>

#include <functional>

namespace millrace {
namespace {

constexpr int kSlots = 4;
constexpr int kBlockSize = 16;
constexpr uint32_t kBlocks = 8;

Admission admit(uint16_t slot, uint32_t num_computed = 0) {
  return {slot, num_computed, 1, SamplingParams{}, std::vector<int32_t>(40, 7)};
}

// Slot 0 with 20 positions in two blocks, slot 2 with 5 in one.
StepPlan first_plan() {
  StepPlan plan;
  plan.admissions = {admit(0), admit(2)};
  plan.rows = {{0, 20, Output::kNone, {3, 1}}, {2, 5, Output::kLast, {0}}};
  return plan;
}

SlotTable table_after_first() {
  SlotTable table(kSlots, kBlockSize, kBlocks);
  EXPECT_EQ(table.apply(first_plan()), "");
  return table;
}

TEST(SlotTable, FollowsPlans) {
  SlotTable table = table_after_first();
  EXPECT_TRUE(table.slot(0).active);
  EXPECT_FALSE(table.slot(1).active);
  EXPECT_EQ(table.slot(0).num_computed, 20u);
  EXPECT_EQ(table.slot(0).blocks, (std::vector<BlockId>{3, 1}));

  StepPlan plan;  // slot 0 makes room for another sequence, with a shared prefix of one block
  plan.sequence = 1;
  plan.releases = {0};
  plan.admissions = {admit(0, 16)};
  plan.rows = {{2, 11, Output::kNone, {}}, {0, 1, Output::kLast, {5, 6}}};
  EXPECT_EQ(table.apply(plan), "");
  EXPECT_EQ(table.slot(0).num_computed, 17u);
  EXPECT_EQ(table.slot(0).blocks, (std::vector<BlockId>{5, 6}));
  EXPECT_EQ(table.slot(2).num_computed, 16u);
}

TEST(SlotTable, RefusesWhatDoesNotFollow) {
  const auto refuses = [](std::function<void(StepPlan&)> change) {
    SlotTable table = table_after_first();
    StepPlan plan;
    plan.sequence = 1;
    change(plan);
    return table.apply(plan);
  };
  EXPECT_EQ(refuses([](StepPlan&) {}), "");
  EXPECT_EQ(refuses([](StepPlan& p) { p.rows = {{2, 11, Output::kLast, {}}}; }), "");
  EXPECT_NE(refuses([](StepPlan& p) { p.sequence = 0; }), "");
  EXPECT_NE(refuses([](StepPlan& p) { p.sequence = 2; }), "");
  EXPECT_NE(refuses([](StepPlan& p) { p.releases = {1}; }), "") << "not active";
  EXPECT_NE(refuses([](StepPlan& p) { p.releases = {0, 0}; }), "") << "twice";
  EXPECT_NE(refuses([](StepPlan& p) { p.releases = {kSlots}; }), "") << "out of range";
  EXPECT_NE(refuses([](StepPlan& p) { p.admissions = {admit(0)}; }), "") << "active";
  EXPECT_NE(refuses([](StepPlan& p) { p.admissions = {admit(1), admit(1)}; }), "") << "twice";
  EXPECT_NE(refuses([](StepPlan& p) { p.admissions = {admit(kSlots)}; }), "") << "out of range";
  EXPECT_NE(refuses([](StepPlan& p) { p.rows = {{1, 1, Output::kNone, {4}}}; }), "");
  EXPECT_NE(refuses([](StepPlan& p) { p.rows = {{65535, 1, Output::kNone, {4}}}; }), "");
  EXPECT_NE(refuses([](StepPlan& p) { p.rows = {{2, 0, Output::kNone, {}}}; }), "") << "no tokens";
  EXPECT_NE(refuses([](StepPlan& p) {
    p.rows = {{2, 12, Output::kNone, {}}};
  }),
      "")
      << "past its blocks";
  EXPECT_NE(refuses([](StepPlan& p) {
    p.rows = {{2, 1, Output::kNone, {kBlocks}}};
  }),
      "")
      << "no such block";
  EXPECT_NE(refuses([](StepPlan& p) {
    p.rows = {{2, 1, Output::kNone, {}}, {2, 1, Output::kNone, {}}};
  }),
      "")
      << "two rows";
  EXPECT_NE(refuses([](StepPlan& p) {
    p.rows = {{2, 1, Output::kNone, std::vector<BlockId>(kBlocks, 4)}};
  }),
      "")
      << "more blocks than there are";
  EXPECT_NE(refuses([](StepPlan& p) {
    p.admissions = {admit(1, 0xffffffff)};
    p.rows = {{1, 1, Output::kNone, {4}}};
  }),
      "")
      << "a position that would wrap";
}

TEST(SlotTable, TheHashSeesPositionsBlocksSlotsAndTheSequence) {
  const uint64_t reference = table_after_first().hash();
  EXPECT_EQ(reference, table_after_first().hash());

  const auto hash_with = [](std::function<void(StepPlan&)> change) {
    SlotTable table(kSlots, kBlockSize, kBlocks);
    StepPlan plan = first_plan();
    change(plan);
    EXPECT_EQ(table.apply(plan), "");
    return table.hash();
  };
  EXPECT_NE(reference, hash_with([](StepPlan& p) { p.rows[1].count = 6; }));
  EXPECT_NE(reference, hash_with([](StepPlan& p) { p.rows[0].new_blocks = {1, 3}; }));
  EXPECT_NE(reference, hash_with([](StepPlan& p) { p.rows[0].new_blocks = {3, 1, 2}; }));
  EXPECT_NE(reference, hash_with([](StepPlan& p) { p.admissions[1].slot = p.rows[1].slot = 3; }));
  EXPECT_NE(reference, hash_with([](StepPlan& p) { p.admissions.push_back(admit(1)); }));
  EXPECT_EQ(reference, hash_with([](StepPlan& p) { p.admissions[0].token_ids[0] = 8; }))
      << "ids are not known to all ranks";

  SlotTable table = table_after_first();
  StepPlan empty;
  empty.sequence = 1;
  EXPECT_EQ(table.apply(empty), "");
  EXPECT_NE(reference, table.hash()) << "the sequence number";
}

TEST(SlotTable, AReleasedSlotLeavesNoTrace) {
  SlotTable used = table_after_first();
  StepPlan release;
  release.sequence = 1;
  release.releases = {0, 2};
  EXPECT_EQ(used.apply(release), "");
  SlotTable fresh(kSlots, kBlockSize, kBlocks);
  StepPlan empty;
  EXPECT_EQ(fresh.apply(empty), "");
  empty.sequence = 1;
  EXPECT_EQ(fresh.apply(empty), "");
  EXPECT_EQ(used.hash(), fresh.hash());
}

}  // namespace
}  // namespace millrace
