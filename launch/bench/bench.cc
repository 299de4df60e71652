#include "launch/bench/bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

#include "engine/base/log.h"
#include "engine/base/status.h"

namespace millrace {

namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// One wave of requests, submitted together and waited for: when each began and ended to speak.
struct Wave {
  std::mutex mutex;
  std::condition_variable changed;
  size_t open = 0;
  Clock::time_point begin;
  std::vector<double> first_s;  // per request: seconds from the submit to its first token
  std::vector<double> total_s;  // and to its last
  Status failure;
};

Request random_request(const BenchConfig& config, int32_t vocab_size, std::mt19937_64& random) {
  std::uniform_int_distribution<int32_t> id(0, vocab_size - 1);
  Request request;
  request.prompt.resize(static_cast<size_t>(config.input_len));
  for (int32_t& token : request.prompt) token = id(random);
  request.max_tokens = config.output_len;
  request.sampling.temperature = 0;
  return request;
}

std::shared_ptr<Wave> run_wave(const BenchConfig& config, EngineApi& engine, int32_t vocab_size,
    int32_t count, std::mt19937_64& random) {
  std::vector<Request> requests;
  for (int32_t i = 0; i < count; ++i) {
    requests.push_back(random_request(config, vocab_size, random));
  }
  // Shared with the callbacks: after a failure some may still come while the wave is left.
  auto wave = std::make_shared<Wave>();
  wave->open = requests.size();
  wave->first_s.assign(requests.size(), 0);
  wave->total_s.assign(requests.size(), 0);
  wave->begin = Clock::now();
  for (size_t i = 0; i < requests.size(); ++i) {
    engine.submit(std::move(requests[i]), [wave, i](const Emission& emission) {
      const double now = Seconds(Clock::now() - wave->begin).count();
      const std::lock_guard lock(wave->mutex);
      if (!emission.tokens.empty() && wave->first_s[i] == 0) wave->first_s[i] = now;
      if (emission.finish == FinishReason::kNone) return;
      wave->total_s[i] = now;
      if (emission.finish != FinishReason::kLength) wave->failure = emission.status;
      if (--wave->open == 0) wave->changed.notify_all();
    });
  }
  std::unique_lock lock(wave->mutex);
  wave->changed.wait(lock, [&] { return wave->open == 0; });
  if (!wave->failure.ok()) throw Error(ExitCode::kWorkerLost, wave->failure.message);
  return wave;
}

void check(const BenchConfig& config, int32_t max_model_len) {
  if (config.input_len < 1 || config.output_len < 2 || config.batch_size < 1 ||
      config.num_prompts < 1 || config.num_iters < 1 || config.num_warmup < 0) {
    throw Error(ExitCode::kUsage,
        "bench needs --input-len >= 1, --output-len >= 2 and at least one request and run");
  }
  if (int64_t{config.input_len} + config.output_len > max_model_len) {
    throw Error(ExitCode::kUsage,
        "--input-len {} and --output-len {} together exceed "
        "the context of {} tokens",
        config.input_len, config.output_len, max_model_len);
  }
}

// One line of a report, in the table and in the JSON.
struct Figure {
  const char* key;
  const char* unit;
  double value;
};

// Figures and the constants behind their limits, as a table and as one JSON object.
BenchReport report(const std::string& title, const std::vector<Figure>& figures,
    const Limits& limits, boost::json::object json) {
  BenchReport made{title + "\n", ""};
  for (const Figure& figure : figures) {
    json[figure.key] = figure.value;
    made.table += fmt::format("  {:28}{:10.3f} {}\n", figure.key, figure.value, figure.unit);
  }
  const double bandwidth = limits.device.read_bytes_per_s / 1e9;
  json["read_bandwidth_gb_per_s"] = bandwidth;
  json["bf16_tflops"] = limits.device.flops / 1e12;
  json["streamed_weight_bytes"] = static_cast<int64_t>(limits.weight_bytes);
  made.table += fmt::format(
      "  limits: {:.1f} MB of weights a step, {:.0f} B of KV a token, read at {:.1f} GB/s",
      limits.weight_bytes / 1e6, limits.kv_bytes, bandwidth);
  if (limits.device.flops > 0) {
    made.table += fmt::format("; products at {:.1f} TFLOP/s", limits.device.flops / 1e12);
  }
  made.table += "\n";
  made.json = boost::json::serialize(json);
  return made;
}

}  // namespace

BenchReport bench_latency(const BenchConfig& config, EngineApi& engine, const Checkpoint& model,
    const Limits& limits, int32_t max_model_len, StepIdle& idle) {
  check(config, max_model_len);
  std::mt19937_64 random(config.seed);
  std::vector<double> prefill_s, decode_s, total_s;
  for (int32_t run = 0; run < config.num_warmup + config.num_iters; ++run) {
    if (run == config.num_warmup) idle.reset();
    const auto wave =
        run_wave(config, engine, model.config().vocab_size, config.batch_size, random);
    const bool counted = run >= config.num_warmup;
    const double first = *std::max_element(wave->first_s.begin(), wave->first_s.end());
    const double total = *std::max_element(wave->total_s.begin(), wave->total_s.end());
    log::info("run {} of {}{}: first token {:.1f} ms, all {:.1f} ms", run + 1,
        config.num_warmup + config.num_iters, counted ? "" : " (warm-up)", first * 1e3,
        total * 1e3);
    if (!counted) continue;
    prefill_s.push_back(first);
    decode_s.push_back(total - first);
    total_s.push_back(total);
  }
  const double batch = config.batch_size;
  const double prompt_rate = batch * config.input_len / median(prefill_s);
  const double tpot = median(decode_s) / (config.output_len - 1);
  const double decode_rate = batch / tpot;
  const double limit_s = limits.decode_step_s(batch, config.input_len + config.output_len / 2.0);
  const double prefill_fraction = batch * limits.prompt_s(config.input_len) / median(prefill_s);
  return report(fmt::format("latency: {} x ({} prompt + {} output tokens), medians of {} runs",
                    config.batch_size, config.input_len, config.output_len, config.num_iters),
      {{"ttft_ms", "ms to the first token", median(prefill_s) * 1e3},
          {"tpot_ms", "ms per output token", tpot * 1e3},
          {"latency_ms", "ms for the whole request", median(total_s) * 1e3},
          {"prompt_tokens_per_s", "tokens/s", prompt_rate},
          {"decode_tokens_per_s", "tokens/s", decode_rate},
          {"tpot_limit_ms", "ms, the least a step can take", limit_s * 1e3},
          {"decode_fraction_of_limit", "", limit_s / tpot},
          {"gpu_idle_fraction", "of the time of decode steps", idle.fraction()},
          {"prefill_fraction_of_limit", "(0: not measured on the CPU)", prefill_fraction}},
      limits,
      {{"input_len", config.input_len}, {"output_len", config.output_len},
          {"batch_size", config.batch_size}, {"num_iters", config.num_iters},
          {"prompt_tokens", config.batch_size * config.input_len},
          {"output_tokens", config.batch_size * config.output_len}});
}

BenchReport bench_throughput(const BenchConfig& config, EngineApi& engine, const Checkpoint& model,
    const Limits& limits, int32_t max_model_len) {
  check(config, max_model_len);
  std::mt19937_64 random(config.seed);
  const auto wave = run_wave(config, engine, model.config().vocab_size, config.num_prompts, random);
  const double seconds = *std::max_element(wave->total_s.begin(), wave->total_s.end());
  std::vector<double> tpot;
  for (size_t i = 0; i < wave->total_s.size(); ++i) {
    tpot.push_back((wave->total_s[i] - wave->first_s[i]) / (config.output_len - 1));
  }
  const double prompts = static_cast<double>(config.num_prompts) * config.input_len;
  const double outputs = static_cast<double>(config.num_prompts) * config.output_len;
  return report(fmt::format("throughput: {} requests of {} prompt + {} output tokens in {:.2f} s",
                    config.num_prompts, config.input_len, config.output_len, seconds),
      {{"requests_per_s", "requests/s", config.num_prompts / seconds},
          {"fraction_of_limit", "(0: not measured on the CPU)",
              config.num_prompts * limits.request_s(config.input_len, config.output_len) / seconds},
          {"prompt_tokens_per_s", "tokens/s", prompts / seconds},
          {"decode_tokens_per_s", "tokens/s", outputs / seconds},
          {"total_tokens_per_s", "tokens/s", (prompts + outputs) / seconds},
          {"ttft_ms", "ms to the first token (median)", median(wave->first_s) * 1e3},
          {"tpot_ms", "ms per output token (median)", median(tpot) * 1e3}},
      limits,
      {{"input_len", config.input_len}, {"output_len", config.output_len},
          {"num_prompts", config.num_prompts}, {"seconds", seconds},
          {"prompt_tokens", static_cast<int64_t>(prompts)},
          {"output_tokens", static_cast<int64_t>(outputs)}});
}

}  // namespace millrace
