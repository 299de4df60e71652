#include "launch/gateway/metrics.h"

#include <fmt/format.h>

#include <algorithm>

#include "launch/gateway/hub.h"

namespace millrace {
namespace {

// vLLM's buckets, so that its dashboards fit; finer below 10 ms, where tokens of small models lie.
constexpr double kFirstTokenBounds[] = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1,
    2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560};
constexpr double kBetweenBounds[] = {.001, .0025, .005, .01, .025, .05, .075, .1, .15, .2, .3, .4,
    .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80};
constexpr double kWholeBounds[] = {
    .3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
constexpr double kTokenBounds[] = {
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6};
constexpr double kChoiceBounds[] = {1, 2, 5, 10, 20, 50, 128};

struct Measured {
  std::string_view name;
  std::span<const double> bounds;
};
constexpr Measured kMeasured[] = {
    {"time_to_first_token_seconds", kFirstTokenBounds},
    {"inter_token_latency_seconds", kBetweenBounds},
    {"request_decode_time_seconds", kWholeBounds},
    {"e2e_request_latency_seconds", kWholeBounds},
    {"request_prompt_tokens", kTokenBounds},
    {"request_generation_tokens", kTokenBounds},
    {"request_params_max_tokens", kTokenBounds},
    {"request_params_n", kChoiceBounds},
};
constexpr std::pair<FinishReason, std::string_view> kFinishNames[] = {{FinishReason::kStop, "stop"},
    {FinishReason::kLength, "length"}, {FinishReason::kCancelled, "abort"},
    {FinishReason::kError, "error"}};

std::string label_value(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    if (c == '\\' || c == '"') escaped += '\\';
    c == '\n' ? escaped += "\\n" : escaped += c;
  }
  return escaped;
}

enum class Names { kOurs, kBoth };  // kBoth: vLLM has the metric as well

// Prometheus' text format 0.0.4, one metric after the other.
class Page {
 public:
  explicit Page(std::string labels) : labels_(std::move(labels)) {}

  // `samples(name)` appends the metric's samples to `text`.
  template <typename F>
  void metric(std::string_view name, const char* type, Names names, const F& samples) {
    for (const std::string_view prefix : {"millrace:", "vllm:"}) {
      if (prefix == "vllm:" && names == Names::kOurs) break;
      const std::string full = fmt::format("{}{}", prefix, name);
      text += fmt::format("# TYPE {} {}\n", full, type);
      samples(full);
    }
  }
  void sample(const std::string& name, double value, std::string_view more_labels = "") {
    text += fmt::format(
        "{}{{{}{}{}}} {}\n", name, labels_, more_labels.empty() ? "" : ",", more_labels, value);
  }
  void value(std::string_view name, const char* type, Names names, double value) {
    metric(name, type, names, [&](const std::string& full) { sample(full, value); });
  }
  const std::string& labels() const { return labels_; }

  std::string text;

 private:
  std::string labels_;
};

void write_engine(Page& page, const CoordinatorStats& stats) {
  const SchedulerStats& s = stats.scheduler;
  const double used = s.num_blocks > 0 ? 1 - static_cast<double>(s.free_blocks) / s.num_blocks : 0;
  page.value("num_requests_running", "gauge", Names::kBoth, s.running);
  page.value("num_requests_waiting", "gauge", Names::kBoth, s.waiting);
  page.value("kv_cache_usage_perc", "gauge", Names::kBoth, used);
  page.value(
      "queue_wait_seconds", "gauge", Names::kOurs, static_cast<double>(stats.queue_wait) * 1e-3);
  const std::tuple<const char*, Names, uint64_t> counters[] = {
      {"num_preemptions_total", Names::kBoth, s.preemptions},
      {"prefix_cache_queries_total", Names::kBoth, s.admitted_tokens},
      {"prefix_cache_hits_total", Names::kBoth, s.prefix_hit_tokens},
      {"steps_total", Names::kOurs, s.steps},
      {"tokens_computed_total", Names::kOurs, s.tokens_computed}};
  for (const auto& [name, names, count] : counters)
    page.value(name, "counter", names, static_cast<double>(count));
  const std::pair<const char*, uint64_t StageTimes::*> times[] = {
      {"stage_busy_seconds_total", &StageTimes::compute_us},
      {"stage_bubble_seconds_total", &StageTimes::idle_us},
      {"stage_comm_seconds_total", &StageTimes::comm_us},
      {"stage_wait_seconds_total", &StageTimes::wait_us}};
  for (const auto& [name, time] : times)
    page.metric(name, "counter", Names::kOurs, [&](const std::string& full) {
      for (size_t i = 0; i < stats.stages.size(); ++i)
        page.sample(full, static_cast<double>(stats.stages[i].*time) * 1e-6,
            fmt::format("stage=\"{}\"", i));
    });
}

}  // namespace

void Histogram::observe(double value, uint64_t times) {
  const auto bucket = std::ranges::lower_bound(bounds_, value) - bounds_.begin();
  counts_[static_cast<size_t>(bucket)].fetch_add(times, std::memory_order_relaxed);
  sum_.fetch_add(value * static_cast<double>(times), std::memory_order_relaxed);
}

void Histogram::write(std::string& text, const std::string& name, std::string_view labels) const {
  uint64_t total = 0;
  for (size_t i = 0; i < counts_.size(); ++i) {
    total += counts_[i].load(std::memory_order_relaxed);
    const std::string bound = i < bounds_.size() ? fmt::format("{}", bounds_[i]) : "+Inf";
    text += fmt::format("{}_bucket{{{},le=\"{}\"}} {}\n", name, labels, bound, total);
  }
  text += fmt::format("{0}_sum{{{1}}} {2}\n{0}_count{{{1}}} {3}\n", name, labels,
      sum_.load(std::memory_order_relaxed), total);
}

Metrics::Metrics() {
  for (const Measured& measured : kMeasured) histograms_.emplace_back(measured.bounds);
}

void Metrics::count_answer(int status) {
  answers_[static_cast<size_t>(std::clamp(status, 0, 599))].fetch_add(1, std::memory_order_relaxed);
}

std::string Metrics::text(const Serving& serving, size_t open_calls, size_t connections) const {
  Page page(fmt::format("model_name=\"{}\",engine=\"0\"", label_value(serving.model.name)));
  write_engine(page, serving.engine->stats());
  page.value("open_calls", "gauge", Names::kOurs, static_cast<double>(open_calls));
  page.value("connections", "gauge", Names::kOurs, static_cast<double>(connections));
  page.value("prompt_tokens_total", "counter", Names::kBoth, static_cast<double>(prompt_tokens_));
  page.value(
      "generation_tokens_total", "counter", Names::kBoth, static_cast<double>(output_tokens_));
  page.metric("request_success_total", "counter", Names::kBoth, [&](const std::string& name) {
    for (const auto& [reason, label] : kFinishNames)
      page.sample(name, static_cast<double>(finished_[static_cast<size_t>(reason)]),
          fmt::format("finished_reason=\"{}\"", label));
  });
  page.metric("http_answers_total", "counter", Names::kOurs, [&](const std::string& name) {
    for (size_t status = 0; status < answers_.size(); ++status)
      if (answers_[status] > 0)
        page.sample(
            name, static_cast<double>(answers_[status]), fmt::format("status=\"{}\"", status));
  });
  for (size_t i = 0; i < histograms_.size(); ++i)
    page.metric(kMeasured[i].name, "histogram", Names::kBoth,
        [&](const std::string& name) { histograms_[i].write(page.text, name, page.labels()); });
  return std::move(page.text);
}

void CallTimes::begin(const ApiCall& call, Metrics& metrics) {
  choices_.assign(call.choices.size(), {});
  prompt_tokens_ = call.prompt_tokens;
  metrics.prompt_tokens_ += static_cast<uint64_t>(call.prompt_tokens);
  metrics.observe(Metrics::kChoices, static_cast<double>(call.choices.size()));
  for (const ApiCall::Choice& choice : call.choices) {
    metrics.observe(Metrics::kPromptTokens, static_cast<double>(choice.request.prompt.size()));
    metrics.observe(Metrics::kMaxTokens, choice.request.max_tokens);
  }
}

void CallTimes::note(size_t index, size_t num_tokens, FinishReason finish, Metrics& metrics) {
  Choice& choice = choices_[index];
  if (choice.ended) return;
  const Clock::time_point now = Clock::now();
  const auto seconds = [&](Clock::time_point since) {
    return std::chrono::duration<double>(now - since).count();
  };
  if (num_tokens > 0) {
    metrics.output_tokens_ += num_tokens;
    output_tokens_ += static_cast<int64_t>(num_tokens);
    if (choice.num_tokens == 0) {
      metrics.observe(Metrics::kFirstToken, seconds(arrived_));
      choice.first = now;
    } else {
      metrics.observe(Metrics::kBetweenTokens,
          seconds(choice.last) / static_cast<double>(num_tokens), num_tokens);
    }
    choice.num_tokens += num_tokens;
    choice.last = now;
  }
  if (finish == FinishReason::kNone) return;
  choice.ended = true;
  ++metrics.finished_[static_cast<size_t>(finish)];
  if (finish != FinishReason::kStop && finish != FinishReason::kLength) return;
  metrics.observe(Metrics::kWhole, seconds(arrived_));
  if (choice.num_tokens > 0) metrics.observe(Metrics::kDecode, seconds(choice.first));
  metrics.observe(Metrics::kOutputTokens, static_cast<double>(choice.num_tokens));
}

void CallTimes::abandon(Metrics& metrics) {
  for (const Choice& choice : std::exchange(choices_, {}))
    if (!choice.ended) ++metrics.finished_[static_cast<size_t>(FinishReason::kCancelled)];
}

}  // namespace millrace
