#include "scheduler/block_pool.h"

#include <gtest/gtest.h>

#include <utility>

namespace millrace {
namespace {

TEST(BlockPool, CountsEveryCopy) {
  BlockPool pool(3);
  {
    Block a = pool.allocate();
    EXPECT_EQ(a.id(), 0u);
    EXPECT_EQ(pool.num_free(), 2u);
    Block b = a;
    Block c = std::move(a);
    EXPECT_EQ(c.id(), b.id());
    EXPECT_EQ(pool.num_free(), 2u);
    b = pool.allocate();
    EXPECT_EQ(pool.num_free(), 1u);
    c = b;  // the last copy of block 0 goes
    EXPECT_EQ(pool.num_free(), 2u);
    EXPECT_EQ(c.id(), 1u);
    b = std::move(c);
    EXPECT_EQ(pool.num_free(), 2u);
  }
  EXPECT_EQ(pool.num_free(), 3u);
}

TEST(BlockPoolDeathTest, EmptyAndLeaking) {
  EXPECT_DEATH(
      {
        BlockPool pool(1);
        const Block held = pool.allocate();
        pool.allocate();
      },
      "no block is free of 1");
  EXPECT_DEATH(
      {
        Block leaked;
        BlockPool pool(2);
        leaked = pool.allocate();
      },
      "1 of 2 blocks are still held");
}

}  // namespace
}  // namespace millrace
