// A group of threads in one process that stands in for ranks: the data plane's interfaces without
// MPI, so that tests of parallel code run under sanitizers. Sums in rank order, as MPI's does.
#pragma once

#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "comm/device_comm.h"

namespace millrace {

class ThreadGroup {
 public:
  explicit ThreadGroup(int size) : size_(size), views_(static_cast<size_t>(size)) {}

  // The group outlives what it hands out.
  std::unique_ptr<DeviceComm> comm(int rank) { return std::make_unique<Comm>(*this, rank); }
  std::unique_ptr<PeerComm> peers(int rank) { return std::make_unique<Peers>(*this, rank); }

 private:
  void barrier() {
    std::unique_lock lock(mutex_);
    const uint64_t round = round_;
    if (++arrived_ == size_) {
      arrived_ = 0;
      ++round_;
      changed_.notify_all();
    } else {
      changed_.wait(lock, [&] { return round_ != round; });
    }
  }

  class Comm final : public DeviceComm {
   public:
    Comm(ThreadGroup& group, int rank) : group_(group), rank_(rank) {}
    int rank() const override { return rank_; }
    int size() const override { return group_.size_; }

    void all_reduce_sum(const TensorView& x) override {
      group_.views_[static_cast<size_t>(rank_)] = x;
      group_.barrier();
      std::vector<float> sum(static_cast<size_t>(x.count()), 0.0f);
      for (int r = 0; r < size(); ++r) {
        const float* theirs = group_.views_[static_cast<size_t>(r)].as<float>();
        for (size_t i = 0; i < sum.size(); ++i) sum[i] = r == 0 ? theirs[i] : sum[i] + theirs[i];
      }
      group_.barrier();
      std::memcpy(x.data, sum.data(), sum.size() * sizeof(float));
      group_.barrier();
    }

    void all_gather_cols(
        const TensorView& mine, std::span<const int64_t> cols, const TensorView& out) override {
      group_.views_[static_cast<size_t>(rank_)] = mine;
      group_.barrier();
      int64_t column = 0;
      for (int r = 0; r < size(); ++r) {
        const TensorView& theirs = group_.views_[static_cast<size_t>(r)];
        for (int64_t t = 0; t < out.rows(); ++t) {
          std::memcpy(out.row_as<float>(t) + column, theirs.row_as<float>(t),
              static_cast<size_t>(cols[static_cast<size_t>(r)]) * sizeof(float));
        }
        column += cols[static_cast<size_t>(r)];
      }
      group_.barrier();
    }

   private:
    ThreadGroup& group_;
    int rank_;
  };

  class Peers final : public PeerComm {
   public:
    Peers(ThreadGroup& group, int rank) : group_(group), rank_(rank) {}
    SendToken send(std::span<const uint8_t> bytes, int to, int tag) override {
      const std::lock_guard lock(group_.mutex_);
      group_.mail_[{rank_, to, tag}].emplace_back(bytes.begin(), bytes.end());
      group_.changed_.notify_all();
      return 0;
    }
    void wait_send(SendToken) override {}
    void receive(std::span<uint8_t> bytes, int from, int tag) override {
      std::unique_lock lock(group_.mutex_);
      auto& box = group_.mail_[{from, rank_, tag}];
      group_.changed_.wait(lock, [&] { return !box.empty(); });
      CHECK(box.front().size() == bytes.size(), "{} bytes came, {} expected", box.front().size(),
          bytes.size());
      std::memcpy(bytes.data(), box.front().data(), bytes.size());
      box.pop_front();
    }

   private:
    ThreadGroup& group_;
    int rank_;
  };

  const int size_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int arrived_ = 0;
  uint64_t round_ = 0;
  std::vector<TensorView> views_;
  std::map<std::tuple<int, int, int>, std::deque<std::vector<uint8_t>>> mail_;  // from, to, tag
};

}  // namespace millrace
