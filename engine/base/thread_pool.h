// The compute threads of one rank. Owned by the worker; parallel_for is called from its one
// compute thread, which takes part in the work.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace millrace {

class ThreadPool {
 public:
  // `num_threads` in all, the caller's included; at least 1.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls body(begin, end) over disjoint ranges that cover [0, count), each of at most `grain`
  // (the last shorter). Ranges are dealt dynamically, so a body's result must not depend on who
  // runs it. Returns when all are done. `body` must not throw.
  void parallel_for(
      int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

 private:
  void run_thread();
  void take_ranges();

  std::vector<std::thread> threads_;
  std::atomic<uint32_t> generation_{0};  // raised for each parallel_for; who sleeps waits on it
  std::atomic<int> busy_{0};
  std::atomic<int64_t> next_{0};
  int64_t count_ = 0;
  int64_t grain_ = 1;
  const std::function<void(int64_t, int64_t)>* body_ = nullptr;
  bool stop_ = false;
};

}  // namespace millrace
