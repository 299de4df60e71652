// What came of a step: taken from another thread than the one that runs them.
#include <algorithm>
#include <chrono>

#include "engine/worker/executor.h"

namespace millrace {

namespace {

int64_t to_ns(double ms) { return static_cast<int64_t>(std::max(0.0, ms) * 1e6); }

// A device that had nothing to do for this long began its next step when the host told it to.
constexpr int64_t kIdleNs = 100'000;

uint32_t to_us(double ms) { return static_cast<uint32_t>(std::max(0.0, ms * 1e3)); }

// Takes the next `count` rows; a row that is not finite spoils the whole result.
void take(
    RowResult& result, std::vector<SampledToken>& tokens, const SampledRow*& next, size_t count) {
  for (; count > 0; --count, ++next) {
    if (next->finite == 0) result.status = RowStatus::kNonFinite;
    tokens.push_back({next->token, next->logprob, {next->top, next->top + next->num_top}});
  }
  if (result.status == RowStatus::kOk) return;
  result.tokens.clear();
  result.scored.clear();
}

}  // namespace

bool Executor::done(uint64_t n) { return flight(n).end->done(); }

// The device's clock is read as differences alone, which neither grow coarse nor drift for long:
// its time line is tied to the host's wherever it had been waiting for the host.
StepTrace Executor::trace(uint64_t n) {
  Flight& flight = this->flight(n);
  StepTrace trace = flight.trace;
  const int64_t idle = n > 0 ? to_ns(flight.begin->ms_since(*this->flight(n - 1).end)) : kIdleNs;
  trace.last_end = n > 0 ? traced_end_ : trace.host_begin;
  trace.begin = std::max(trace.last_end + (idle < kIdleNs ? idle : 0), trace.host_begin);
  trace.ready = trace.begin + to_ns(flight.ready->ms_since(*flight.begin));
  trace.forward = trace.ready + to_ns(flight.forward->ms_since(*flight.ready));
  trace.end = trace.forward + to_ns(flight.end->ms_since(*flight.forward));
  if (!device_.asynchronous()) trace.comm = flight.host_wait.count();
  traced_end_ = trace.end;
  return trace;
}

StepResult Executor::result(uint64_t n) {
  Flight& flight = this->flight(n);
  StepResult result;
  result.sequence = flight.sequence;
  result.stage = static_cast<uint16_t>(topology_.pp_rank());
  const double wait = flight.ready->ms_since(*flight.begin);
  const double gap = n > 0 ? flight.begin->ms_since(*this->flight(n - 1).end) : 0;
  const double host_wait = std::chrono::duration<double, std::milli>(flight.host_wait).count();
  result.idle_us = to_us(wait + gap);
  result.wait_us = topology_.pp() > 1 ? to_us(wait) : 0;
  result.comm_us = to_us(host_wait);
  result.compute_us = to_us(flight.end->ms_since(*flight.ready) - host_wait);
  if (topology_.last_stage()) {
    const auto* sampled = reinterpret_cast<const SampledRow*>(flight.sampled.data());
    const SampledRow* scored = sampled + num_sampled(flight);
    for (const Row& planned : flight.outputs) {
      RowResult& row = result.rows.emplace_back();
      row.slot = planned.slot;
      take(row, row.tokens, sampled, planned.num_sampled());
      take(row, row.scored, scored, planned.num_scored());
    }
  }
  results_taken_.store(n + 1);
  return result;
}

}  // namespace millrace
