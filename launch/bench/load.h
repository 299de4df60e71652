// Random requests sent to an engine at their times, and when each of their tokens came. Called from
// the main thread.
#pragma once

#include <boost/json/object.hpp>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

#include "launch/api/engine_api.h"
#include "launch/bench/workload.h"

namespace millrace {

struct Percentiles {
  double p50 = 0, p90 = 0, p99 = 0;
};
// By nearest rank; 0 of nothing.
Percentiles percentiles(std::vector<double> values);
boost::json::object to_json(const Percentiles& values);

// Requests under way. Callbacks hold it: after a failure some may still come while it is left.
struct Load {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point begin = Clock::now();
  std::mutex mutex;
  std::condition_variable changed;
  // Per request: seconds from `begin` on.
  std::vector<double> sent_s;
  std::vector<std::vector<double>> token_s;
  size_t open = 0;
  Status failure;

  double now_s() const { return std::chrono::duration<double>(Clock::now() - begin).count(); }
};

// Sends one request of random ids, stop ids ignored; its index in the load, and its id.
std::pair<size_t, RequestId> send(const std::shared_ptr<Load>& load, EngineApi& engine,
    const Arrival& arrival, int32_t vocab_size, std::mt19937_64& random);
// Waits until `done` holds, looked at under the mutex. Throws Error(kWorkerLost) on a failure.
void wait_until(Load& load, const std::function<bool()>& done);
// Sends all at their times and waits for their ends.
std::shared_ptr<Load> run_load(EngineApi& engine, const std::vector<Arrival>& arrivals,
    int32_t vocab_size, std::mt19937_64& random);

}  // namespace millrace
