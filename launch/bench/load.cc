#include "launch/bench/load.h"

#include <algorithm>
#include <cmath>
#include <thread>
#include <utility>

namespace millrace {

Percentiles percentiles(std::vector<double> values) {
  if (values.empty()) return {};
  std::ranges::sort(values);
  const auto at = [&](double share) {
    const double rank = std::ceil(share * static_cast<double>(values.size()));
    return values[static_cast<size_t>(std::max(1.0, rank)) - 1];
  };
  return {at(0.5), at(0.9), at(0.99)};
}

boost::json::object to_json(const Percentiles& values) {
  return {{"p50", values.p50}, {"p90", values.p90}, {"p99", values.p99}};
}

std::pair<size_t, RequestId> send(const std::shared_ptr<Load>& load, EngineApi& engine,
    const Arrival& arrival, int32_t vocab_size, std::mt19937_64& random) {
  std::uniform_int_distribution<int32_t> id(0, vocab_size - 1);
  Request request;
  request.prompt.resize(static_cast<size_t>(arrival.prompt_tokens));
  for (int32_t& token : request.prompt) token = id(random);
  request.max_tokens = arrival.output_tokens;
  request.sampling.temperature = 0;
  size_t index = 0;
  {
    const std::lock_guard lock(load->mutex);
    index = load->sent_s.size();
    load->sent_s.push_back(load->now_s());
    load->token_s.emplace_back();
    ++load->open;
  }
  const RequestId sent = engine.submit(std::move(request), [load, index](const Emission& emission) {
    const double now = load->now_s();
    const std::lock_guard lock(load->mutex);
    std::vector<double>& times = load->token_s[index];
    times.insert(times.end(), emission.tokens.size(), now);
    if (emission.finish != FinishReason::kNone) --load->open;
    const bool ended_well = emission.finish == FinishReason::kNone ||
                            emission.finish == FinishReason::kLength ||
                            emission.finish == FinishReason::kCancelled;
    if (!ended_well) load->failure = emission.status;
    load->changed.notify_all();
  });
  return {index, sent};
}

void wait_until(Load& load, const std::function<bool()>& done) {
  std::unique_lock lock(load.mutex);
  load.changed.wait(lock, [&] { return done() || !load.failure.ok(); });
  if (!load.failure.ok()) throw Error(ExitCode::kWorkerLost, "{}", load.failure.message);
}

std::shared_ptr<Load> run_load(EngineApi& engine, const std::vector<Arrival>& arrivals,
    int32_t vocab_size, std::mt19937_64& random) {
  const auto load = std::make_shared<Load>();
  for (const Arrival& arrival : arrivals) {
    std::this_thread::sleep_until(load->begin + std::chrono::duration_cast<Load::Clock::duration>(
                                                    std::chrono::duration<double>(arrival.at_s)));
    send(load, engine, arrival, vocab_size, random);
  }
  wait_until(*load, [&] { return load->open == 0; });
  return load;
}

}  // namespace millrace
