// The cost model against what was measured (docs/performance.md: Llama-3.1-8B shape, H200).
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/launch/sim/sim_setup.h"

namespace millrace {
namespace {

struct Wave {
  double ttft_ms = 0;  // of the last one to get its first token
  double tpot_ms = 0;
};

// `count` requests at once, as `millrace bench latency` sends them.
Wave run_wave(const ReplicaConfig& config, int count, int prompt, int output) {
  const std::vector<Arrival> arrivals(static_cast<size_t>(count), Arrival{0, prompt, output});
  const SimResult result = simulate(config, 1, arrivals, /*seed=*/0);
  double first = 0;
  double last = 0;
  for (const Outcome& outcome : result.outcomes) {
    first = std::max(first, outcome.token_s.front());
    last = std::max(last, outcome.token_s.back());
  }
  return {first * 1e3, (last - first) * 1e3 / (output - 1)};
}

void expect_within(double simulated, double measured, double share, const std::string& what) {
  EXPECT_NEAR(simulated / measured, 1, share)
      << what << ": simulated " << simulated << ", measured " << measured;
}

TEST(Cost, DecodeOfOneGpu) {
  const ReplicaConfig config = make_replica("llama-3.1-8b", 1, 1);
  const std::pair<int, double> measured[] = {
      {1, 4.61}, {8, 4.86}, {32, 5.77}, {64, 6.38}, {128, 8.23}, {256, 12.45}};
  for (const auto& [batch, tpot_ms] : measured) {
    expect_within(
        run_wave(config, batch, 512, 144).tpot_ms, tpot_ms, 0.05, "batch " + std::to_string(batch));
  }
}

TEST(Cost, PrefillOfOneGpu) {
  const ReplicaConfig config = make_replica("llama-3.1-8b", 1, 1);
  expect_within(run_wave(config, 1, 512, 2).ttft_ms, 12.7, 0.05, "512");
  expect_within(8192e3 / run_wave(config, 1, 8192, 2).ttft_ms, 31.5e3, 0.05, "1 x 8192");
  expect_within(8 * 2048e3 / run_wave(config, 8, 2048, 2).ttft_ms, 38.8e3, 0.05, "8 x 2048");
}

TEST(Cost, TwoGpus) {
  const ReplicaConfig tp = make_replica("llama-3.1-8b", 2, 1);
  expect_within(run_wave(tp, 1, 512, 144).tpot_ms, 3.19, 0.10, "tp 2, batch 1");
  expect_within(run_wave(tp, 64, 512, 144).tpot_ms, 4.50, 0.10, "tp 2, batch 64");
  expect_within(run_wave(tp, 256, 512, 144).tpot_ms, 8.31, 0.10, "tp 2, batch 256");
  expect_within(8192e3 / run_wave(tp, 1, 8192, 2).ttft_ms, 52.9e3, 0.10, "tp 2, 1 x 8192");
  const ReplicaConfig pp = make_replica("llama-3.1-8b", 1, 2);
  expect_within(run_wave(pp, 1, 512, 144).tpot_ms, 4.76, 0.10, "pp 2, batch 1");
  expect_within(run_wave(pp, 64, 512, 144).tpot_ms, 5.87, 0.10, "pp 2, batch 64");
  expect_within(run_wave(pp, 256, 512, 144).tpot_ms, 8.53, 0.10, "pp 2, batch 256");
  const ReplicaConfig large_tp = make_replica("llama-3.1-70b", 2, 1);
  expect_within(run_wave(large_tp, 1, 512, 144).tpot_ms, 19.7, 0.10, "70B tp 2, batch 1");
  expect_within(run_wave(large_tp, 64, 512, 144).tpot_ms, 24.3, 0.10, "70B tp 2, batch 64");
  const ReplicaConfig large_pp = make_replica("llama-3.1-70b", 1, 2);
  expect_within(run_wave(large_pp, 1, 512, 144).tpot_ms, 35.5, 0.10, "70B pp 2, batch 1");
  expect_within(run_wave(large_pp, 64, 512, 144).tpot_ms, 38.2, 0.12, "70B pp 2, batch 64");
}

TEST(Cost, OfflineMixes) {
  const auto rate = [](int pp, int prompt, int output) {
    ReplicaConfig config = make_replica("llama-3.1-8b", 1, pp);
    config.engine.max_num_seqs = 512;
    const std::vector<Arrival> arrivals(1000, Arrival{0, prompt, output});
    return 1000 / simulate(config, 1, arrivals, /*seed=*/0).between(0, 1).end;
  };
  expect_within(rate(1, 1024, 128), 28.5, 0.20, "1024/128");
  expect_within(rate(1, 128, 512), 41.0, 0.20, "128/512");
  expect_within(rate(2, 1024, 128), 51.6, 0.20, "pp 2, 1024/128");
}

}  // namespace
}  // namespace millrace
