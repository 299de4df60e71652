// Topology, tensor-parallel verbs and the pipeline hand-off over threads that stand in for ranks.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>
#include <thread>

#include "parallel/pp_link.h"
#include "parallel/topology.h"
#include "parallel/tp_ops.h"
#include "tests/comm/thread_comm.h"

namespace millrace {
namespace {

void on_ranks(int num_ranks, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < num_ranks; ++rank) threads.emplace_back(body, rank);
  for (std::thread& thread : threads) thread.join();
}

TEST(Topology, NeighboursAndGroups) {
  for (int tp = 1; tp <= 4; ++tp) {
    for (int pp = 1; pp <= 4; ++pp) {
      for (int rank = 0; rank < tp * pp; ++rank) {
        const Topology topology(tp, pp, rank);
        EXPECT_EQ(topology.pp_rank() * tp + topology.tp_rank(), rank);
        EXPECT_EQ(topology.rank_of_stage(topology.pp_rank()), rank);
        EXPECT_EQ(topology.first_stage(), rank < tp);
        EXPECT_EQ(topology.last_stage(), rank >= tp * (pp - 1));
        if (!topology.last_stage()) {
          const Topology next(tp, pp, topology.next());
          EXPECT_EQ(next.previous(), rank);
          EXPECT_EQ(next.tp_rank(), topology.tp_rank());
        }
      }
    }
  }
}

TEST(TpOps, SumsInRankOrderWithTheSameBitsEverywhere) {
  constexpr int kRanks = 3;
  constexpr int64_t kRows = 5, kCols = 37;
  std::vector<std::vector<float>> parts(kRanks);
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0.0f, 1000.0f);
  for (auto& part : parts) {
    part.resize(kRows * kCols);
    for (float& value : part) value = normal(random);
  }
  std::vector<float> expected = parts[0];
  for (int r = 1; r < kRanks; ++r) {
    for (size_t i = 0; i < expected.size(); ++i) expected[i] += parts[static_cast<size_t>(r)][i];
  }
  ThreadGroup group(kRanks);
  on_ranks(kRanks, [&](int rank) {
    const auto comm = group.comm(rank);
    TpOps tp(*comm);
    EXPECT_EQ(tp.rank(), rank);
    EXPECT_EQ(tp.size(), kRanks);
    tp.reduce(TensorView(parts[static_cast<size_t>(rank)].data(), DType::kF32, {kRows, kCols}));
    EXPECT_GT(tp.take_wait_time().count(), 0);
    EXPECT_EQ(tp.take_wait_time().count(), 0);
  });
  for (const auto& part : parts) {
    EXPECT_EQ(0, std::memcmp(part.data(), expected.data(), part.size() * sizeof(float)));
  }
}

TEST(TpOps, GathersUnevenShardsSideBySide) {
  const std::vector<int64_t> widths = {3, 1, 2};
  constexpr int64_t kRows = 2;
  ThreadGroup group(3);
  on_ranks(3, [&](int rank) {
    const auto comm = group.comm(rank);
    TpOps tp(*comm);
    const int64_t width = widths[static_cast<size_t>(rank)];
    std::vector<float> mine(static_cast<size_t>(kRows * width));
    for (size_t i = 0; i < mine.size(); ++i) mine[i] = static_cast<float>(rank * 10) + float(i);
    std::vector<float> all(12);
    const TensorView got = tp.gather_cols(TensorView(mine.data(), DType::kF32, {kRows, width}),
        widths, TensorView(all.data(), DType::kF32, {12}));
    EXPECT_EQ(got.data, reinterpret_cast<uint8_t*>(all.data()));
    EXPECT_EQ(got.cols(), 6);
    EXPECT_EQ(all, (std::vector<float>{0, 1, 2, 10, 20, 21, 3, 4, 5, 11, 22, 23}));
  });
}

TEST(TpOps, AGroupOfOneChangesNothing) {
  DeviceComm comm;
  TpOps tp(comm);
  std::vector<float> x = {1, 2, 3, 4};
  const TensorView view(x.data(), DType::kF32, {2, 2});
  tp.reduce(view);
  const std::vector<int64_t> widths = {2};
  EXPECT_EQ(tp.gather_cols(view, widths, TensorView()).data, view.data);
  EXPECT_EQ(x, (std::vector<float>{1, 2, 3, 4}));
}

// Plans of 2 x 3 ranks: each stage adds one to the hidden states, the last one sends the sum of
// the row back as its id, and the first checks what came.
TEST(PpLink, HiddenStatesGoDownAndIdsComeBack) {
  constexpr int kTp = 2, kPp = 3, kPlans = 40;
  constexpr int64_t kHidden = 300;
  ThreadGroup group(kTp * kPp);
  on_ranks(kTp * kPp, [&](int rank) {
    const Topology topology(kTp, kPp, rank);
    const auto peers = group.peers(rank);
    PpLink link(topology, peers.get());
    std::vector<std::vector<float>> lanes(static_cast<size_t>(topology.num_lanes()));
    std::vector<std::vector<int32_t>> sent_ids(lanes.size());
    const auto value_of = [&](int plan) { return static_cast<float>(plan + topology.tp_rank()); };
    const auto expect_id = [&](int plan) {
      std::vector<int32_t> ids(1);
      link.receive_ids(ids);
      EXPECT_EQ(ids[0], static_cast<int32_t>(value_of(plan)) + kPp);
    };
    for (int plan = 0; plan < kPlans; ++plan) {
      if (topology.first_stage() && plan >= kPp) expect_id(plan - kPp);
      const int lane = plan % topology.num_lanes();
      link.wait_lane(lane);
      auto& hidden = lanes[static_cast<size_t>(lane)];
      hidden.assign(kHidden, value_of(plan));
      const TensorView view(hidden.data(), DType::kF32, {1, kHidden});
      if (!topology.first_stage()) link.receive_hidden(view);
      for (float& value : hidden) value += 1;
      if (!topology.last_stage()) {
        link.send_hidden(lane, view);
      } else {
        std::vector<int32_t> ids = {static_cast<int32_t>(hidden[kHidden - 1])};
        sent_ids[static_cast<size_t>(lane)].swap(ids);  // the former ones live to the link's wait
        link.send_ids(lane, sent_ids[static_cast<size_t>(lane)]);
      }
    }
    for (int plan = kPlans - kPp; topology.first_stage() && plan < kPlans; ++plan) expect_id(plan);
  });
}

// A send that has not left yet must be waited for before the same lane sends again.
class UnfinishedSends final : public PeerComm {
 public:
  SendToken send(std::span<const uint8_t>, int, int) override {
    open.push_back(next_);
    return next_++;
  }
  void wait_send(SendToken token) override { EXPECT_EQ(std::erase(open, token), 1u); }
  void receive(std::span<uint8_t>, int, int) override { FAIL(); }
  std::vector<SendToken> open;

 private:
  SendToken next_ = 0;
};

TEST(PpLink, ALaneWaitsForWhatItSentBefore) {
  UnfinishedSends peers;
  std::vector<float> data(4);
  const TensorView hidden(data.data(), DType::kF32, {1, 4});
  PpLink first(Topology(1, 2, 0), &peers);
  first.send_hidden(0, hidden);
  first.send_hidden(1, hidden);
  first.send_hidden(2, hidden);
  EXPECT_EQ(peers.open, (std::vector<PeerComm::SendToken>{0, 1, 2}));
  first.send_hidden(1, hidden);
  EXPECT_EQ(peers.open, (std::vector<PeerComm::SendToken>{0, 2, 3}));
  first.wait_lane(0);
  first.wait_lane(0);
  EXPECT_EQ(peers.open, (std::vector<PeerComm::SendToken>{2, 3}));

  UnfinishedSends id_peers;
  PpLink last(Topology(1, 2, 1), &id_peers);
  last.send_ids(0, std::vector<int32_t>{1});
  last.send_ids(1, std::vector<int32_t>{1});
  last.send_ids(0, std::vector<int32_t>{1});
  EXPECT_EQ(id_peers.open, (std::vector<PeerComm::SendToken>{1, 2}));
}

}  // namespace
}  // namespace millrace
