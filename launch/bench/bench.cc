#include "launch/bench/bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <random>
#include <vector>

#include "engine/base/log.h"
#include "engine/base/status.h"
#include "launch/bench/load.h"

namespace millrace {

namespace {

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
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
  const std::vector<Arrival> arrivals(
      static_cast<size_t>(config.batch_size), Arrival{0, config.input_len, config.output_len});
  for (int32_t run = 0; run < config.num_warmup + config.num_iters; ++run) {
    if (run == config.num_warmup) idle.reset();
    const auto load = run_load(engine, arrivals, model.config().vocab_size, random);
    const bool counted = run >= config.num_warmup;
    double first = 0, total = 0;
    for (const std::vector<double>& at : load->token_s) {
      first = std::max(first, at.front());
      total = std::max(total, at.back());
    }
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

namespace {

// What the requests of a load saw, in ms, and what they came to.
struct Seen {
  std::vector<double> ttft, tpot, itl;
  double prompt_tokens = 0, output_tokens = 0, end_s = 0;
};

Seen look_at(const std::vector<Arrival>& arrivals, const Load& load) {
  Seen seen;
  for (size_t i = 0; i < arrivals.size(); ++i) {
    const std::vector<double>& at = load.token_s[i];
    seen.prompt_tokens += arrivals[i].prompt_tokens;
    seen.output_tokens += static_cast<double>(at.size());
    seen.end_s = std::max(seen.end_s, at.back());
    seen.ttft.push_back((at.front() - load.sent_s[i]) * 1e3);
    for (size_t t = 1; t < at.size(); ++t) seen.itl.push_back((at[t] - at[t - 1]) * 1e3);
    if (at.size() < 2) continue;
    seen.tpot.push_back((at.back() - at.front()) * 1e3 / static_cast<double>(at.size() - 1));
  }
  return seen;
}

}  // namespace

BenchReport bench_throughput(const BenchConfig& config, EngineApi& engine, const Checkpoint& model,
    const Limits& limits, int32_t max_model_len) {
  check(config, max_model_len);
  std::mt19937_64 random(config.seed);
  const LengthConfig lengths{config.input_len, config.output_len, config.length_variation};
  std::vector<Arrival> arrivals =
      draw_lengths(lengths, config.num_prompts, max_model_len, config.seed);
  if (config.rate > 0) draw_times(arrivals, config.rate, config.seed);
  double limit_s = 0;
  for (const Arrival& each : arrivals)
    limit_s += limits.request_s(each.prompt_tokens, each.output_tokens);
  const auto load = run_load(engine, arrivals, model.config().vocab_size, random);
  const Seen seen = look_at(arrivals, *load);
  const CoordinatorStats stats = engine.stats();
  const SchedulerStats& steps = stats.scheduler;
  const Percentiles ttft = percentiles(seen.ttft), tpot = percentiles(seen.tpot),
                    itl = percentiles(seen.itl);
  const auto per_step = [&](uint64_t count) {
    return steps.steps > 0 ? static_cast<double>(count) / static_cast<double>(steps.steps) : 0;
  };
  boost::json::array busy;
  for (const StageTimes& stage : stats.stages) {
    const auto used = static_cast<double>(stage.compute_us + stage.comm_us);
    busy.push_back(used > 0 ? used / (used + static_cast<double>(stage.idle_us)) : 0);
  }
  return report(fmt::format("throughput: {} requests of about {} prompt + {} output tokens in "
                            "{:.2f} s",
                    config.num_prompts, config.input_len, config.output_len, seen.end_s),
      {{"requests_per_s", "requests/s", config.num_prompts / seen.end_s},
          {"fraction_of_limit", "(0: not measured on the CPU)", limit_s / seen.end_s},
          {"prompt_tokens_per_s", "tokens/s", seen.prompt_tokens / seen.end_s},
          {"decode_tokens_per_s", "tokens/s", seen.output_tokens / seen.end_s},
          {"total_tokens_per_s", "tokens/s",
              (seen.prompt_tokens + seen.output_tokens) / seen.end_s},
          {"ttft_ms", "ms to the first token (median)", ttft.p50}, {"ttft_p99_ms", "", ttft.p99},
          {"tpot_ms", "ms per output token (median)", tpot.p50},
          {"itl_p99_ms", "ms between two tokens", itl.p99},
          {"tokens_per_step", "", per_step(steps.tokens_computed)},
          {"preemptions", "", static_cast<double>(steps.preemptions)},
          {"prefix_hit_tokens", "", static_cast<double>(steps.prefix_hit_tokens)},
          {"lane_spread", "of the longest of as many steps as lanes", steps.lane_spread},
          {"model_error", "of predicted step times", steps.model_error},
          {"stage_bubble_fraction", "", stats.stage_bubble_fraction()},
          {"exposed_comm_fraction", "waits for other stages' work included",
              stats.exposed_comm_fraction()}},
      limits,
      {{"input_len", config.input_len}, {"output_len", config.output_len},
          {"num_prompts", config.num_prompts}, {"rate", config.rate}, {"seconds", seen.end_s},
          {"prompt_tokens", static_cast<int64_t>(seen.prompt_tokens)},
          {"output_tokens", static_cast<int64_t>(seen.output_tokens)},
          {"stage_busy_fraction", std::move(busy)}});
}

}  // namespace millrace
