#include "launch/bench/serve_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <charconv>
#include <cmath>
#include <numeric>

#include "engine/base/status.h"
#include "launch/bench/load.h"

namespace millrace {

namespace {

constexpr int32_t kDefaultPrompts = 1000;

[[noreturn]] void usage_error(const std::string& sentence) {
  throw Error(ExitCode::kUsage, sentence);
}

enum Metric { kTtft, kTpot, kItl, kE2el, kNumMetrics };
constexpr std::array<const char*, kNumMetrics> kNames = {"ttft", "tpot", "itl", "e2el"};

// The most that a request may take of each, in ms; infinity where nothing is asked.
using Objectives = std::array<double, kNumMetrics>;

Objectives parse_goodput(const std::vector<std::string>& words) {
  Objectives most;
  most.fill(std::numeric_limits<double>::infinity());
  for (const std::string& word : words) {
    const size_t colon = std::min(word.find(':'), word.size());
    const auto name = std::ranges::find(kNames, word.substr(0, colon));
    double ms = 0;
    const char* end = word.data() + word.size();
    const bool parsed =
        colon < word.size() && std::from_chars(word.data() + colon + 1, end, ms).ptr == end;
    if (name == kNames.end() || name == kNames.begin() + kItl || !parsed || !(ms > 0))
      usage_error(
          fmt::format("--goodput {}: write milliseconds as ttft:200, tpot:50 or e2el:10000", word));
    most[static_cast<size_t>(name - kNames.begin())] = ms;
  }
  return most;
}

std::vector<Arrival> make_arrivals(const ServeBenchConfig& config) {
  const bool paced = std::isfinite(config.request_rate);
  if (!(config.request_rate > 0 && config.burstiness > 0))
    usage_error(
        "--request-rate and --burstiness take numbers above 0; a rate of inf is all at once");
  if (!config.trace.empty()) {
    if (paced)
      usage_error("--request-rate and --trace: a trace has its own times; give one of them");
    std::vector<Arrival> arrivals = read_trace(config.trace, std::numeric_limits<int32_t>::max());
    if (config.num_prompts > 0)
      arrivals.resize(std::min(arrivals.size(), static_cast<size_t>(config.num_prompts)));
    return arrivals;
  }
  const int32_t count = config.num_prompts > 0 ? config.num_prompts : kDefaultPrompts;
  std::vector<Arrival> arrivals = draw_even_lengths(
      config.input_len, config.output_len, config.range_ratio, count, config.target.seed);
  if (paced) draw_times(arrivals, config.request_rate, config.target.seed, config.burstiness);
  return arrivals;
}

// What came of a load.
struct Totals {
  std::array<std::vector<double>, kNumMetrics> ms;
  int64_t completed = 0, failed = 0, good = 0, input_tokens = 0, output_tokens = 0;
};

Totals add_up(
    const HttpLoad& load, const std::vector<Arrival>& arrivals, const Objectives& objectives) {
  Totals totals;
  for (size_t i = 0; i < arrivals.size(); ++i) {
    const HttpOutcome& outcome = load.outcomes[i];
    const std::vector<double>& at = outcome.event_s;
    if (!outcome.error.empty()) {
      ++totals.failed;
      continue;
    }
    ++totals.completed;
    totals.input_tokens += arrivals[i].prompt_tokens;
    totals.output_tokens += outcome.output_tokens;
    const auto gaps = static_cast<double>(outcome.output_tokens - 1);
    Objectives seen{};  // one token has no time between tokens: good
    seen[kTtft] = (at.front() - outcome.sent_s) * 1e3;
    seen[kE2el] = (at.back() - outcome.sent_s) * 1e3;
    if (gaps > 0) seen[kTpot] = (at.back() - at.front()) * 1e3 / gaps;
    for (size_t t = 1; t < at.size(); ++t) totals.ms[kItl].push_back((at[t] - at[t - 1]) * 1e3);
    bool good = true;
    for (const Metric metric : {kTtft, kTpot, kE2el}) {
      good &= seen[metric] <= objectives[metric];
      if (metric != kTpot || gaps > 0) totals.ms[metric].push_back(seen[metric]);
    }
    totals.good += good;
  }
  return totals;
}

}  // namespace

ServeBenchReport bench_serve(const ServeBenchConfig& config) {
  const Objectives objectives = parse_goodput(config.goodput);
  const std::vector<Arrival> arrivals = make_arrivals(config);
  HttpTarget target = config.target;
  if (target.endpoint.ends_with("/chat/completions"))
    usage_error("--endpoint: prompts are token ids, which a chat cannot take; use /v1/completions");
  if (target.base_url.empty())
    target.base_url = fmt::format("http://{}:{}", config.host, config.port);
  const HttpLoad load = run_http_load(target, arrivals);
  const Totals totals = add_up(load, arrivals, objectives);

  const double seconds = std::max(load.duration_s, 1e-9);
  const auto per_second = [&](int64_t count) { return static_cast<double>(count) / seconds; };
  boost::json::object json;
  std::string table = fmt::format("{}{}: {} requests, {} failed, {:.3f} s\n", target.base_url,
      target.endpoint, arrivals.size(), totals.failed, seconds);
  json["duration"] = seconds;
  json["completed"] = totals.completed;
  json["failed"] = totals.failed;
  json["total_input_tokens"] = totals.input_tokens;
  json["total_output_tokens"] = totals.output_tokens;
  json["request_goodput"] = nullptr;
  const auto rate = [&](const char* key, int64_t count) {
    json[key] = per_second(count);
    table += fmt::format("  {:24}{:12.2f} /s\n", key, per_second(count));
  };
  rate("request_throughput", totals.completed);
  if (!config.goodput.empty()) rate("request_goodput", totals.good);
  rate("output_throughput", totals.output_tokens);
  rate("total_token_throughput", totals.input_tokens + totals.output_tokens);
  for (size_t metric = 0; metric < kNumMetrics; ++metric) {
    const std::vector<double>& ms = totals.ms[metric];
    const Percentiles spread = percentiles(ms);
    const double count = std::max(1.0, static_cast<double>(ms.size()));
    const double mean = std::accumulate(ms.begin(), ms.end(), 0.0) / count;
    double squares = 0;
    for (const double value : ms) squares += (value - mean) * (value - mean);
    const std::string name = fmt::format("{}_ms", kNames[metric]);
    for (const auto& [what, value] : {std::pair{"mean", mean}, {"std", std::sqrt(squares / count)},
             {"median", spread.p50}, {"p50", spread.p50}, {"p90", spread.p90}, {"p99", spread.p99}})
      json[fmt::format("{}_{}", what, name)] = value;
    table += fmt::format("  {:10}{:10.2f} mean{:10.2f} p50{:10.2f} p90{:10.2f} p99\n", name, mean,
        spread.p50, spread.p90, spread.p99);
  }
  json["max_concurrent_requests"] = load.most_open;
  json["max_send_delay_ms"] = load.most_late_s * 1e3;
  table += fmt::format("  at most {} at a time; the latest was sent {:.2f} ms after its time\n",
      load.most_open, load.most_late_s * 1e3);
  const auto failed = std::ranges::find_if(
      load.outcomes, [](const HttpOutcome& outcome) { return !outcome.error.empty(); });
  return {{std::move(table), boost::json::serialize(json)}, static_cast<size_t>(totals.failed),
      failed == load.outcomes.end() ? "" : failed->error};
}

}  // namespace millrace
