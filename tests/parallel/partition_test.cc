// The cut: every shape of a small world, and the stage cut against trying them all.
#include "parallel/partition.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "engine/base/status.h"

namespace millrace {
namespace {

double stage_cost(
    const Stage& stage, std::span<const double> costs, double embedding, double head) {
  double sum = (stage.has_embedding ? embedding : 0) + (stage.has_head ? head : 0);
  for (int i = 0; i < stage.num_layers; ++i) {
    sum += costs[static_cast<size_t>(stage.first_layer + i)];
  }
  return sum;
}

// The least possible cost of the dearest stage, by trying every cut.
double try_all(std::span<const double> costs, double head, int stages, double first_extra) {
  const double sum = std::accumulate(costs.begin(), costs.end(), 0.0);
  if (stages == 1) return sum + head + first_extra;
  double best = 1e300;
  double taken = first_extra;
  for (size_t n = 1; n + static_cast<size_t>(stages) - 1 <= costs.size(); ++n) {
    taken += costs[n - 1];
    best = std::min(best, std::max(taken, try_all(costs.subspan(n), head, stages - 1, 0)));
  }
  return best;
}

std::vector<int> layers_of(const std::vector<Stage>& stages) {
  std::vector<int> layers;
  for (const Stage& stage : stages) layers.push_back(stage.num_layers);
  return layers;
}

void expect_whole(const std::vector<Stage>& stages, int num_layers) {
  int next = 0;
  for (size_t s = 0; s < stages.size(); ++s) {
    EXPECT_EQ(stages[s].first_layer, next);
    EXPECT_GE(stages[s].num_layers, 1);
    EXPECT_EQ(stages[s].has_embedding, s == 0);
    EXPECT_EQ(stages[s].has_head, s + 1 == stages.size());
    next += stages[s].num_layers;
  }
  EXPECT_EQ(next, num_layers);
}

TEST(PartitionLayers, IsAsGoodAsTryingEveryCut) {
  std::mt19937 random(5);
  for (int round = 0; round < 300; ++round) {
    const int num_layers = 1 + static_cast<int>(random() % 9);
    const int num_stages = 1 + static_cast<int>(random() % static_cast<unsigned>(num_layers));
    std::vector<double> costs(static_cast<size_t>(num_layers));
    for (double& cost : costs) cost = static_cast<double>(random() % 20);
    const auto embedding = static_cast<double>(random() % 30);
    const auto head = static_cast<double>(random() % 30);
    const auto stages = partition_layers(costs, embedding, head, num_stages);
    ASSERT_EQ(static_cast<int>(stages.size()), num_stages);
    expect_whole(stages, num_layers);
    double dearest = 0;
    for (const Stage& stage : stages) {
      dearest = std::max(dearest, stage_cost(stage, costs, embedding, head));
    }
    EXPECT_EQ(dearest, try_all(costs, head, num_stages, embedding));
  }
}

TEST(PartitionLayers, CountsTheHeadAndStaysEven) {
  const std::vector<double> equal(30, 1.0);
  EXPECT_EQ(layers_of(partition_layers(equal, 0, 0, 2)), (std::vector<int>{15, 15}));
  EXPECT_EQ(layers_of(partition_layers(equal, 0, 8, 2)), (std::vector<int>{19, 11}));
  // The dear last stage leaves the others free to be uneven; they are not.
  EXPECT_EQ(layers_of(partition_layers(equal, 0, 100, 4)), (std::vector<int>{9, 10, 10, 1}));
}

TEST(PartitionLayers, FewerLayersThanStagesIsALayoutError) {
  try {
    partition_layers(std::vector<double>(3, 1.0), 0, 0, 4);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::kLayout);
  }
}

TEST(PartitionByHand, TakesWhatAddsUpOnly) {
  const auto by_hand = [](std::vector<int32_t> layers, int num_layers) {
    return partition_by_hand(layers, num_layers, 4);
  };
  const auto stages = by_hand({9, 9, 8, 6}, 32);
  expect_whole(stages, 32);
  EXPECT_EQ(layers_of(stages), (std::vector<int>{9, 9, 8, 6}));
  EXPECT_THROW(by_hand({9, 9, 8}, 26), Error);
  EXPECT_THROW(by_hand({9, 9, 8, 6}, 33), Error);
  EXPECT_THROW(by_hand({16, 17, 0, -1}, 32), Error);
  EXPECT_THROW(by_hand({}, 32), Error);
  EXPECT_THROW(by_hand({INT32_MAX, INT32_MAX, 34, 0}, 32), Error);
}

TEST(ShardHeads, CoverEveryHeadOnceAndReadTheRightKvHead) {
  for (int kv_heads = 1; kv_heads <= 9; ++kv_heads) {
    for (int group = 1; group <= 5; ++group) {
      const int heads = kv_heads * group;
      for (int tp = 1; tp <= heads; ++tp) {
        int64_t next = 0;
        int64_t next_kv = 0;
        int64_t most = 0, least = heads;
        for (int rank = 0; rank < tp; ++rank) {
          const HeadShard shard = shard_heads(heads, kv_heads, tp, rank);
          EXPECT_EQ(shard.heads.begin, next) << heads << "/" << kv_heads << " over " << tp;
          EXPECT_GE(shard.heads.size, 1);
          next += shard.heads.size;
          most = std::max(most, shard.heads.size);
          least = std::min(least, shard.heads.size);
          // Exactly the KV heads that these query heads read.
          EXPECT_EQ(shard.kv_heads.begin, shard.heads.begin / group);
          EXPECT_EQ(shard.kv_heads.begin + shard.kv_heads.size - 1, (next - 1) / group);
          if (tp > kv_heads) {
            EXPECT_EQ(shard.kv_heads.size, 1);
          } else {
            EXPECT_EQ(shard.kv_heads.begin, next_kv) << "no KV head twice";
            next_kv += shard.kv_heads.size;
          }
        }
        EXPECT_EQ(next, heads);
        EXPECT_LE(most - least, std::max(group, 1)) << "at most one group more";
        if (tp <= kv_heads) {
          EXPECT_EQ(next_kv, kv_heads);
        }
      }
      EXPECT_THROW(shard_heads(heads, kv_heads, heads + 1, 0), Error);
    }
  }
}

TEST(ShardHeads, NineHeadsInThreeGroups) {
  EXPECT_EQ(shard_heads(9, 3, 2, 0).heads, (Range{0, 6}));
  EXPECT_EQ(shard_heads(9, 3, 2, 0).kv_heads, (Range{0, 2}));
  EXPECT_EQ(shard_heads(9, 3, 2, 1).heads, (Range{6, 3}));
  EXPECT_EQ(shard_heads(9, 3, 2, 1).kv_heads, (Range{2, 1}));
  // Four ranks for three KV heads: the first head has two, which split its queries.
  EXPECT_EQ(shard_heads(9, 3, 4, 0).heads, (Range{0, 2}));
  EXPECT_EQ(shard_heads(9, 3, 4, 1).heads, (Range{2, 1}));
  EXPECT_EQ(shard_heads(9, 3, 4, 1).kv_heads, (Range{0, 1}));
  EXPECT_EQ(shard_heads(9, 3, 4, 3).heads, (Range{6, 3}));
}

TEST(ShardColumns, CoverEveryColumnOnceInMultiples) {
  for (const int64_t multiple : {1, 3, 32}) {
    for (int64_t size = 1; size <= 200; ++size) {
      for (int tp = 1; tp <= 6; ++tp) {
        if ((size + multiple - 1) / multiple < tp) {
          for (int rank = 0; rank < tp; ++rank) {
            EXPECT_THROW(shard_columns(size, multiple, tp, rank), Error);
          }
          continue;
        }
        int64_t next = 0;
        int64_t most = 0, least = size;
        for (int rank = 0; rank < tp; ++rank) {
          const Range range = shard_columns(size, multiple, tp, rank);
          EXPECT_EQ(range.begin, next);
          EXPECT_EQ(range.begin % multiple, 0);
          EXPECT_GE(range.size, 1);
          EXPECT_TRUE(rank + 1 == tp || range.size % multiple == 0);
          next += range.size;
          most = std::max(most, range.size);
          least = std::min(least, range.size);
        }
        EXPECT_EQ(next, size);
        EXPECT_LT(most - least, 2 * multiple);
      }
    }
  }
}

}  // namespace
}  // namespace millrace
