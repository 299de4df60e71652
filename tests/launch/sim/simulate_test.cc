// `millrace simulate`: its report, and an answer for every wrong input.
#include "launch/sim/simulate.h"

#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <fstream>

#include "engine/base/status.h"
#include "launch/bench/saved_model.h"
#include "launch/sim/scheduler_bench.h"

namespace millrace {
namespace {

SimulateConfig small() {
  SimulateConfig config;
  config.shape = "llama-3.1-8b";
  config.engine.pp = 2;
  config.engine.max_num_seqs = 32;
  config.engine.max_num_batched_tokens = 2048;
  config.lengths = {.prompt_mean = 200, .output_mean = 50, .variation = 1};
  return config;
}

boost::json::object report(const SimulateConfig& config) {
  return boost::json::parse(run_simulation(config).json).as_object();
}

double number(const boost::json::object& json, const char* key) {
  return json.at(key).to_number<double>();
}

std::string refusal(const SimulateConfig& config) {
  try {
    run_simulation(config);
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

std::string trace_file(const std::string& content) {
  const std::string path = testing::TempDir() + "trace.jsonl";
  std::ofstream(path) << content;
  return path;
}

TEST(Simulate, SameSeedSameBytes) {
  SimulateConfig config = small();
  const std::string once = run_simulation(config).json;
  EXPECT_EQ(run_simulation(config).json, once);
  config.seed = 1;
  EXPECT_NE(run_simulation(config).json, once);
}

TEST(Simulate, TheReportAddsUp) {
  const auto json = report(small());
  EXPECT_EQ(number(json, "gpus"), 2);
  EXPECT_EQ(number(json, "requests"), 8 * 32);
  EXPECT_EQ(number(json, "refused"), 0);
  EXPECT_NEAR(number(json, "offered_requests_per_s"),
      0.8 * number(json, "saturation_requests_per_s"), 1e-6);
  EXPECT_GT(number(json, "throughput_ratio"), 0.5);
  EXPECT_GT(number(json, "stage_bubble_fraction"), 0);
  EXPECT_LT(number(json, "stage_bubble_fraction"), 1);
  const auto& ttft = json.at("ttft_ms").as_object();
  EXPECT_GT(number(ttft, "p50"), 0);
  EXPECT_LE(number(ttft, "p50"), number(ttft, "p99"));
}

TEST(Simulate, ARateTakesSoManyGpus) {
  SimulateConfig config = small();
  const double one = number(report(config), "saturation_requests_per_s");
  config.rate = 0.8 * one * 2.5;
  const auto json = report(config);
  EXPECT_EQ(number(json, "replicas"), 3);
  EXPECT_EQ(number(json, "gpus"), 6);
}

TEST(Simulate, ATraceHasItsOwnTimes) {
  SimulateConfig config = small();
  config.trace = trace_file(
      R"({"arrival_s": 2, "prompt_tokens": 100, "output_tokens": 3}
{"arrival_s": 0.5, "prompt_tokens": 100, "output_tokens": 3, "user": "x"}
)");
  EXPECT_EQ(number(report(config), "requests"), 2);
  config.trace = trace_file(R"({"arrival_s": 1, "prompt_tokens": 10})");
  EXPECT_NE(refusal(config).find("line 1: output_tokens is missing"), std::string::npos);
  config.trace = trace_file("\nno json\n");
  EXPECT_NE(refusal(config).find("line 2"), std::string::npos);
  config.trace = trace_file(R"({"arrival_s": -1, "prompt_tokens": 10, "output_tokens": 3})");
  EXPECT_NE(refusal(config).find("arrival_s is -1"), std::string::npos);
  config.trace = trace_file("");
  EXPECT_NE(refusal(config).find("holds no request"), std::string::npos);
}

// What a run has measured, in place of a shape and a GPU.
TEST(Simulate, AMeasuredReplica) {
  SimulateConfig config;
  config.step_model = testing::TempDir() + "model.json";
  EngineConfig engine;
  engine.pp = 2;
  engine.max_model_len = 512;
  SchedulerStats stats;
  stats.num_blocks = 100;
  stats.step_models = {{0.010}, {0.030}};  // seconds of any step
  write_step_model(config.step_model, engine, stats);
  config.trace = trace_file(R"({"arrival_s": 0, "prompt_tokens": 10, "output_tokens": 11})");
  config.num_requests = 1;
  const auto json = report(config);
  EXPECT_EQ(number(json, "gpus"), 2);
  EXPECT_EQ(number(json, "kv_cache_tokens"), 1600);
  EXPECT_NEAR(number(json.at("ttft_ms").as_object(), "p50"), 40, 0.5);
  EXPECT_NEAR(number(json.at("tpot_ms").as_object(), "p50"), 40, 0.5);
  std::ofstream(config.step_model) << R"({"tp": 1, "pp": 2})";
  EXPECT_NE(refusal(config).find("block_size is missing"), std::string::npos);
  std::ofstream(config.step_model) << "no json";
  EXPECT_NE(refusal(config).find("model.json: no step model"), std::string::npos);
}

TEST(Simulate, EveryMistakeIsNamed) {
  const auto with = [](auto change) {
    SimulateConfig config = small();
    change(config);
    return refusal(config);
  };
  EXPECT_NE(with([](auto& c) { c.shape = "llama-9"; }).find("llama-3.1-70b"), std::string::npos);
  EXPECT_NE(with([](auto& c) { c.shape = ""; }).find("--shape"), std::string::npos);
  EXPECT_NE(with([](auto& c) { c.gpu = "h900"; }).find("h200"), std::string::npos);
  EXPECT_NE(with([](auto& c) { c.load = 1.5; }).find("--load 1.5"), std::string::npos);
  EXPECT_NE(with([](auto& c) { c.engine.pp = 33; }).find("32 layers"), std::string::npos);
  EXPECT_NE(with([](auto& c) { c.engine.tp = 16; }).find("--gpus-per-host"), std::string::npos);
  EXPECT_NE(with([](auto& c) {
    c.shape = "llama-3.1-70b";
    c.engine.pp = 1;
  }).find("higher -tp or -pp"),
      std::string::npos);
}

TEST(SchedulerBench, CountsRowsAndPlanBytes) {
  SchedulerBenchConfig config;
  config.engine.tp = 8;
  config.engine.max_num_batched_tokens = 8192;
  config.sequences = {256};
  config.num_steps = 50;
  const auto json = boost::json::parse(bench_scheduler(config).json);
  const auto& run = json.at("runs").at(0).as_object();
  EXPECT_EQ(number(run, "rows_per_step"), 256);
  EXPECT_LE(number(run, "max_plan_bytes"), 2048);
  EXPECT_GT(number(run, "median_us"), 0);
}

}  // namespace
}  // namespace millrace
