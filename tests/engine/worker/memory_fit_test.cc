// Figures of a small shape and of a large one, calculated by hand.
#include "engine/worker/memory_fit.h"

#include <gtest/gtest.h>

#include "engine/base/status.h"

namespace millrace {
namespace {

constexpr int64_t kMib = 1 << 20, kH100 = 81559 * kMib;

EngineConfig engine_for(DeviceKind device) {
  EngineConfig engine;
  engine.device = device;
  engine.max_num_seqs = 8;
  engine.max_num_batched_tokens = 64;
  return engine;
}

std::shared_ptr<const Checkpoint> shape(const std::string& folder) {
  return open_checkpoint(folder, /*dummy=*/true);
}
std::shared_ptr<const Checkpoint> tiny() { return shape("tests/data/tiny-llama"); }

TEST(MemoryFit, PartsAreTheSumsOfTheirShapes) {
  EngineConfig engine = engine_for(DeviceKind::kCuda);
  engine.kv_cache_bytes = kMib;
  const LayoutFit fit = fit_layout(tiny(), engine, kH100, 0);
  ASSERT_EQ(fit.reason, "");
  ASSERT_EQ(fit.ranks.size(), 1u);
  const MemoryPlan& plan = fit.ranks[0];
  // Bf16 matrices, f32 norms: qkv 192 x 96, o 96 x 96, gate and up 256 x 96, down 96 x 128.
  const int64_t layer = 2 * (192 * 96 + 96 * 96 + 256 * 96 + 96 * 128) + 2 * 96 * 4;
  EXPECT_EQ(plan.weights, 4 * layer + 2 * 2 * 512 * 96 + 96 * 4);
  // Of 16 tokens in 4 layers, 3 heads of 16, keys and values in bf16; one more block for padding.
  const int64_t block = 4 * 2 * 16 * 3 * 16 * 2, blocks = kMib / block;
  EXPECT_EQ(plan.kv, (blocks + 1) * block);
  EXPECT_EQ(plan.kv_tokens, blocks * 16);
  EXPECT_EQ(plan.comm, 0);
  EXPECT_EQ(plan.graphs, 4 * 4 * (24 << 10));  // batches of 1, 2, 4 and 8
  // Most of it the library's 64 MiB for products and the own kernels' 32.
  EXPECT_GT(plan.workspace, 96 * kMib);
  EXPECT_LT(plan.workspace, 112 * kMib);
  EXPECT_EQ(fit.longest, 256);
}

TEST(MemoryFit, RanksOfUnequalHeadsHaveAsManyBlocks) {
  EngineConfig engine = engine_for(DeviceKind::kCpu);
  engine.kv_cache_bytes = kMib;
  engine.tp = 2;
  const LayoutFit fit = fit_layout(tiny(), engine, 1024 * kMib, 10 * kMib);
  ASSERT_EQ(fit.reason, "");
  ASSERT_EQ(fit.ranks.size(), 2u);
  // Two KV heads and one, in f32; of the first rank's blocks 64 fill a MiB.
  const int64_t block = 4 * 2 * 16 * 1 * 16 * 4;
  EXPECT_EQ(fit.ranks[0].kv, (64 + 1) * 2 * block);
  EXPECT_EQ(fit.ranks[1].kv, (64 + 1) * block);
  for (const MemoryPlan& plan : fit.ranks) {
    EXPECT_EQ(plan.kv_tokens, 64 * 16);
    EXPECT_EQ(plan.graphs + plan.comm, 0);
    EXPECT_GT(plan.workspace, 10 * kMib);  // the program's
    EXPECT_LT(plan.workspace, 11 * kMib);
  }
}

TEST(MemoryFit, WhatIsNeededIsJustEnough) {
  const EngineConfig engine = engine_for(DeviceKind::kCuda);
  const int64_t needed = fit_layout(tiny(), engine, kH100, 0).needed;
  EXPECT_EQ(fit_layout(tiny(), engine, needed, 0).reason, "");
  EXPECT_NE(fit_layout(tiny(), engine, needed - 8 * kMib, 0).reason, "");
}

TEST(MemoryFit, AModelThatCannotBeCutSoIsNoLayout) {
  EngineConfig engine = engine_for(DeviceKind::kCuda);
  engine.pp = 5;
  const LayoutFit fit = fit_layout(tiny(), engine, kH100, 0);
  EXPECT_NE(fit.reason, "");
  EXPECT_EQ(fit.needed, 0);
}

// 70.6 billion parameters in bf16 are 131.4 GiB: two cards of 79.6 GiB hold them with room for a
// few sequences, three cards of 48 GiB do not once the workspace is there, four do.
TEST(MemoryFit, ProposesTheFewestGpus) {
  EngineConfig engine = engine_for(DeviceKind::kCuda);
  engine.max_model_len = 8192;
  const auto large = shape("configs/shapes/llama-3.1-70b");
  const LayoutFit on_h100 = propose_layout(large, engine, 8, kH100);
  EXPECT_EQ(on_h100.reason, "");
  EXPECT_EQ(on_h100.tp * on_h100.pp, 2);
  EXPECT_EQ(on_h100.tp, 2);
  const LayoutFit on_l40s = propose_layout(large, engine, 8, 46068 * kMib);
  EXPECT_EQ(on_l40s.reason, "");
  EXPECT_EQ(on_l40s.tp, 4);
  EXPECT_EQ(on_l40s.pp, 1);
  const LayoutFit nowhere = propose_layout(large, engine, 1, kH100);
  EXPECT_NE(nowhere.reason, "");
  EXPECT_GT(nowhere.needed, int64_t{132} << 30);
  EXPECT_LT(nowhere.needed, int64_t{140} << 30);
}

}  // namespace
}  // namespace millrace
