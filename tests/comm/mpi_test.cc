// Run by every rank of an mpirun job of any size: the collectives against a reference, split
// groups, peers, large messages, and a send that must move while its sender is outside MPI.
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <numeric>
#include <random>
#include <thread>

#include "comm/device_comm.h"
#include "comm/mpi_world.h"

namespace millrace {
namespace {

const MpiWorld* world = nullptr;  // set by main, before the tests

// Nobody goes on before all have come: each has to be heard.
void join_all() {
  for (int rank = 0; rank < world->size(); ++rank) world->broadcast(Bytes(), rank);
}

// What rank `rank` brings to a collective: the same numbers on whoever asks.
std::vector<float> contribution(int rank, size_t count) {
  std::mt19937 random(static_cast<unsigned>(rank) + 1);
  std::normal_distribution<float> normal(0.0f, 100.0f);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

std::vector<float> sum_of(const std::vector<int>& ranks, size_t count) {
  std::vector<float> sum = contribution(ranks[0], count);
  for (size_t i = 1; i < ranks.size(); ++i) {
    const std::vector<float> part = contribution(ranks[i], count);
    for (size_t k = 0; k < count; ++k) sum[k] += part[k];
  }
  return sum;
}

std::vector<int> all_ranks() {
  std::vector<int> ranks(static_cast<size_t>(world->size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

TEST(MpiWorld, KnowsItsPlace) {
  EXPECT_TRUE(launched_by_mpi());
  EXPECT_EQ(launcher_rank(), world->rank());
  EXPECT_EQ(launcher_size(), world->size());
  EXPECT_EQ(world->local_size(), world->size());
  join_all();
}

TEST(MpiWorld, BroadcastsAnyLength) {
  const int last = world->size() - 1;
  for (const size_t size : {size_t{0}, size_t{1}, size_t{3'000'001}}) {
    Bytes bytes(size);
    for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<uint8_t>(i * 7);
    EXPECT_EQ(world->broadcast(world->rank() == last ? bytes : Bytes{9}, last), bytes);
  }
}

TEST(MpiGroup, SumsInRankOrderBitByBit) {
  const auto group = world->split(0, world->rank());
  EXPECT_EQ(group->rank(), world->rank());
  EXPECT_EQ(group->size(), world->size());
  // From one value to more than one piece of the scratch memory.
  for (const size_t count : {size_t{1}, size_t{576}, size_t{5} << 18}) {
    std::vector<float> x = contribution(world->rank(), count);
    group->all_reduce_sum(TensorView(x.data(), DType::kF32, {1, static_cast<int64_t>(count)}));
    const std::vector<float> expected = sum_of(all_ranks(), count);
    EXPECT_EQ(0, std::memcmp(x.data(), expected.data(), count * sizeof(float))) << count;
  }
}

TEST(MpiGroup, GathersUnevenColumns) {
  const auto group = world->split(0, world->rank());
  for (const int64_t rows : {1, 7, 300}) {  // 300 rows of 4 x 1,000 columns are two pieces
    std::vector<int64_t> cols;
    int64_t total = 0;
    for (const int rank : all_ranks()) {
      cols.push_back(1000 + rank);
      total += cols.back();
    }
    const int64_t width = cols[static_cast<size_t>(world->rank())];
    std::vector<float> mine = contribution(world->rank(), static_cast<size_t>(rows * width));
    std::vector<float> out(static_cast<size_t>(rows * total), -1.0f);
    group->all_gather_cols(TensorView(mine.data(), DType::kF32, {rows, width}), cols,
        TensorView(out.data(), DType::kF32, {rows, total}));
    int64_t column = 0;
    for (const int rank : all_ranks()) {
      const int64_t n = cols[static_cast<size_t>(rank)];
      const std::vector<float> theirs = contribution(rank, static_cast<size_t>(rows * n));
      for (int64_t t = 0; t < rows; ++t) {
        ASSERT_EQ(0, std::memcmp(out.data() + t * total + column, theirs.data() + t * n,
                         static_cast<size_t>(n) * sizeof(float)))
            << "row " << t << " of rank " << rank;
      }
      column += n;
    }
  }
}

TEST(MpiGroup, SplitGroupsAreOrderedByKeyAndDoNotMix) {
  const int color = world->rank() % 2;
  const auto group = world->split(color, -world->rank());  // the last rank comes first
  std::vector<int> members;
  for (int rank = world->size() - 1; rank >= 0; --rank) {
    if (rank % 2 == color) members.push_back(rank);
  }
  ASSERT_EQ(group->size(), static_cast<int>(members.size()));
  EXPECT_EQ(members[static_cast<size_t>(group->rank())], world->rank());
  std::vector<float> x = contribution(world->rank(), 100);
  group->all_reduce_sum(TensorView(x.data(), DType::kF32, {100}));
  EXPECT_EQ(x, sum_of(members, 100));
}

TEST(MpiPeers, MessagesKeepTheirOrderAndTags) {
  const auto peers = world->peers();
  const int next = (world->rank() + 1) % world->size();
  const int previous = (world->rank() + world->size() - 1) % world->size();
  constexpr int kMessages = 200;
  std::vector<std::vector<uint8_t>> sent;
  std::vector<PeerComm::SendToken> tokens;
  for (int i = 0; i < kMessages; ++i) {  // sizes below and above what MPI sends eagerly
    sent.emplace_back(static_cast<size_t>(1 + i * 97), static_cast<uint8_t>(i + world->rank()));
    tokens.push_back(peers->send(sent.back(), next, i % 2));
  }
  // The odd tag first: tags are ways of their own.
  for (const int tag : {1, 0}) {
    for (int i = tag; i < kMessages; i += 2) {
      std::vector<uint8_t> got(static_cast<size_t>(1 + i * 97));
      peers->receive(got, previous, tag);
      EXPECT_EQ(got, std::vector<uint8_t>(got.size(), static_cast<uint8_t>(i + previous)));
    }
  }
  for (auto token = tokens.rbegin(); token != tokens.rend(); ++token) peers->wait_send(*token);
}

TEST(MpiPeers, ALargeMessage) {
  const auto peers = world->peers();
  const int next = (world->rank() + 1) % world->size();
  const int previous = (world->rank() + world->size() - 1) % world->size();
  std::vector<uint8_t> mine(48 << 20);
  for (size_t i = 0; i < mine.size(); ++i) {
    mine[i] = static_cast<uint8_t>(i * 31 + static_cast<size_t>(world->rank()));
  }
  const auto token = peers->send(mine, next, 5);
  std::vector<uint8_t> theirs(mine.size());
  peers->receive(theirs, previous, 5);
  peers->wait_send(token);
  const int difference = previous - world->rank();
  for (size_t i = 0; i < mine.size(); ++i) theirs[i] -= static_cast<uint8_t>(difference);
  EXPECT_EQ(theirs, mine);
}

// The sender of a large message stays outside MPI until the receiver has it: a stage that waits
// for the next plan must not keep the next stage waiting. Fails by running into ctest's limit.
TEST(MpiPeers, ASendMovesWhileItsSenderIsElsewhere) {
  if (world->size() < 2) GTEST_SKIP() << "needs two ranks";
  const auto peers = world->peers();
  join_all();
  // The receiver tells by a file, the one way around MPI that every rank has.
  const std::string path = std::string("/tmp/millrace_mpi_test_") + std::to_string(getppid());
  std::vector<uint8_t> bytes(1 << 20, 42);
  if (world->rank() == 0) {
    const auto token = peers->send(bytes, 1, 0);
    while (access(path.c_str(), F_OK) != 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    peers->wait_send(token);
    unlink(path.c_str());
  } else if (world->rank() == 1) {
    std::vector<uint8_t> got(bytes.size());
    peers->receive(got, 0, 0);
    EXPECT_EQ(got, bytes);
    FILE* file = fopen(path.c_str(), "w");
    ASSERT_NE(file, nullptr);
    fclose(file);
  }
  join_all();
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const millrace::MpiWorld mpi;
  millrace::world = &mpi;
  return RUN_ALL_TESTS();
}
