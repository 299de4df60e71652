#include "launch/sim/simulation.h"

#include <algorithm>
#include <memory>
#include <queue>
#include <utility>

#include "engine/base/hash.h"

namespace millrace {

namespace {

// A frame on its way to a coordinator. Of two at the same time the one sent first comes first.
struct Delivery {
  double at_s = 0;
  uint64_t order = 0;
  size_t replica = 0;
  int rank = 0;
  Bytes frame;
};
struct Later {
  bool operator()(const Delivery& a, const Delivery& b) const {
    return a.at_s != b.at_s ? a.at_s > b.at_s : a.order > b.order;
  }
};

class Simulation {
 public:
  Simulation(const ReplicaConfig& config, int num_replicas, std::span<const Arrival> arrivals,
      uint64_t seed)
      : arrivals_(arrivals),
        seed_(seed),
        vocab_size_(config.model.vocab_size),
        pp_(config.engine.pp),
        open_(static_cast<size_t>(num_replicas)) {
    for (int i = 0; i < num_replicas; ++i) {
      replicas_.push_back(std::make_unique<Replica>(config));
      result_.replicas.push_back({.num_blocks = replicas_.back()->num_blocks()});
    }
  }

  SimResult run() {
    for (size_t next = 0; next < arrivals_.size() || !deliveries_.empty();) {
      const bool frame_first =
          !deliveries_.empty() &&
          (next == arrivals_.size() || deliveries_.top().at_s <= arrivals_[next].at_s);
      frame_first ? deliver() : submit(next++);
    }
    for (size_t r = 0; r < replicas_.size(); ++r) {
      result_.replicas[r].stages = replicas_[r]->stages();
    }
    return std::move(result_);
  }

 private:
  void submit(size_t index) {
    const Arrival& arrival = arrivals_[index];
    result_.outcomes.push_back({.arrival = arrival});
    Request request;
    request.prompt.resize(static_cast<size_t>(arrival.prompt_tokens));
    uint64_t draw = hash_combine(seed_, index);
    for (int32_t& id : request.prompt) {
      draw = mix64(draw);
      id = static_cast<int32_t>(draw % static_cast<uint64_t>(vocab_size_));
    }
    request.max_tokens = arrival.output_tokens;
    request.sampling.temperature = 0;
    const auto least = std::ranges::min_element(open_);
    ++*least;
    const auto replica = static_cast<size_t>(least - open_.begin());
    handle(replica, SubmitEvent{index, std::move(request)}, arrival.at_s);
  }

  void deliver() {
    Delivery delivery = deliveries_.top();
    deliveries_.pop();
    const size_t replica = delivery.replica;
    handle(replica, FrameEvent{delivery.rank, std::move(delivery.frame)}, delivery.at_s);
    result_.replicas[replica].progress.push_back(
        {delivery.at_s, replicas_[replica]->stats().tokens_computed});
  }

  void handle(size_t replica, Event event, double now_s) {
    std::vector<Emission> emissions;
    std::vector<Replica::Message> messages;
    replicas_[replica]->handle(std::move(event), now_s, emissions, messages);
    for (Replica::Message& message : messages) {
      deliveries_.push(
          {message.at_s, num_sent_++, replica, message.rank, std::move(message.frame)});
    }
    for (const Emission& emission : emissions) {
      Outcome& outcome = result_.outcomes[emission.id];
      outcome.token_s.insert(outcome.token_s.end(), emission.tokens.size(), now_s);
      if (emission.finish == FinishReason::kNone) continue;
      outcome.done = emission.finish == FinishReason::kLength;
      --open_[replica];
    }
    note_runnable(replica, now_s);
  }

  void note_runnable(size_t replica, double now_s) {
    std::vector<Span>& spans = result_.replicas[replica].runnable;
    const bool runnable = open_[replica] >= pp_;
    const bool was = !spans.empty() && spans.back().end == kForever;
    if (runnable && !was) spans.push_back({now_s, kForever});
    if (!runnable && was) spans.back().end = now_s;
  }

  static constexpr double kForever = 1e300;

  const std::span<const Arrival> arrivals_;
  const uint64_t seed_;
  const int32_t vocab_size_;
  const int pp_;
  std::vector<std::unique_ptr<Replica>> replicas_;
  std::vector<int> open_;  // requests, per replica
  std::priority_queue<Delivery, std::vector<Delivery>, Later> deliveries_;
  uint64_t num_sent_ = 0;
  SimResult result_;
};

// Seconds that two ordered lists of spans have in common within `window`.
double overlap(const std::vector<Span>& a, const std::vector<Span>& b, const Span& window) {
  double sum = 0;
  for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    const double begin = std::max({a[i].begin, b[j].begin, window.begin});
    const double end = std::min({a[i].end, b[j].end, window.end});
    sum += std::max(0.0, end - begin);
    a[i].end < b[j].end ? ++i : ++j;
  }
  return sum;
}

}  // namespace

SimResult simulate(const ReplicaConfig& config, int num_replicas, std::span<const Arrival> arrivals,
    uint64_t seed) {
  return Simulation(config, num_replicas, arrivals, seed).run();
}

Span SimResult::between(double first_share, double last_share) const {
  std::vector<double> ends;
  for (const Outcome& outcome : outcomes) {
    if (outcome.done) ends.push_back(outcome.token_s.back());
  }
  if (ends.empty()) return {};
  std::ranges::sort(ends);
  const auto at = [&](double share) {
    return ends[static_cast<size_t>(share * static_cast<double>(ends.size() - 1))];
  };
  return {first_share > 0 ? at(first_share) : outcomes.front().arrival.at_s, at(last_share)};
}

double SimResult::tokens_per_s(const Span& window) const {
  uint64_t tokens = 0;
  for (const ReplicaTimes& replica : replicas) {
    const auto by = [&](double time) {
      const auto after = std::ranges::upper_bound(replica.progress, time, {}, &Progress::at_s);
      return after == replica.progress.begin() ? 0 : std::prev(after)->tokens_computed;
    };
    tokens += by(window.end) - by(window.begin);
  }
  return window.end > window.begin ? static_cast<double>(tokens) / (window.end - window.begin) : 0;
}

double SimResult::bubble_fraction(const Span& window) const {
  double idle = 0;
  double runnable = 0;
  for (const ReplicaTimes& replica : replicas) {
    for (const Replica::StageTimes& stage : replica.stages) {
      idle += overlap(stage.idle, replica.runnable, window);
      runnable += overlap({window}, replica.runnable, window);
    }
  }
  return runnable > 0 ? idle / runnable : 0;
}

}  // namespace millrace
