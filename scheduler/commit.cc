// commit(): appends what the last stage sampled, finds the ends, lets go of what no plan names.
#include <algorithm>
#include <iterator>
#include <utility>

#include "scheduler/scheduler.h"

namespace millrace {

std::vector<Emission> Scheduler::commit(const StepResult& result) {
  CHECK(!flights_.empty() && flights_.front().number == result.sequence,
      "the result of plan {} came, plan {} is due", result.sequence,
      flights_.empty() ? next_plan_ : flights_.front().number);
  const InFlight flight = std::move(flights_.front());
  flights_.pop_front();
  ++steps_;

  std::vector<Emission> emissions;
  auto row = result.rows.begin();
  for (const InFlight::PlannedRow& planned : flight.rows) {
    Sequence& sequence = *planned.sequence;
    --sequence.in_flight;
    tokens_computed_ += static_cast<uint64_t>(planned.count);
    if (planned.output != Output::kNone) {
      CHECK(row != result.rows.end() && row->slot == sequence.slot,
          "the result of plan {} has no row for slot {}", result.sequence, sequence.slot);
      const RowResult& sampled = *row++;
      // One step ahead, a sequence may be planned past its end: what comes then is dropped.
      if (sequence.phase != Phase::kRetiring) {
        Emission emission = take_row(sequence, sampled);
        const bool ends = emission.finish != FinishReason::kNone;
        if (ends || !emission.tokens.empty()) emissions.push_back(std::move(emission));
        if (ends) {
          retire(sequence);
          continue;
        }
        publish(sequence, result.sequence);
      }
    }
    if (sequence.in_flight > 0) continue;
    if (sequence.phase == Phase::kPreempted) {
      wait_again(sequence);
    } else if (sequence.phase == Phase::kRetiring) {
      forget(sequence);
    }
  }
  CHECK(row == result.rows.end(), "the result of plan {} has {} rows", result.sequence,
      result.rows.size());
  return emissions;
}

Emission Scheduler::take_row(Sequence& sequence, const RowResult& row) {
  Emission emission;
  emission.id = sequence.id;
  if (row.status == RowStatus::kNonFinite) {
    // What its blocks hold may be no better.
    for (const Block& block : sequence.blocks) pool_.keep(block.id(), /*on=*/false);
    emission.finish = FinishReason::kError;
    emission.status = {
        ErrorCode::kInternal, "the model computed values that are not finite for this request", ""};
    return emission;
  }
  std::ranges::copy(row.scored, std::back_inserter(sequence.scored));
  if (row.tokens.empty()) return emission;
  CHECK(row.tokens.size() == 1, "slot {} has {} tokens in one step", row.slot, row.tokens.size());
  emission.tokens = row.tokens;
  emission.prompt = std::exchange(sequence.scored, {});
  sequence.ids.push_back(row.tokens[0].token);
  const int32_t num_emitted = sequence.num_known() - sequence.num_prompt;
  ++tokens_emitted_;
  const Request& request = sequence.request;
  const auto& stops = request.stop_token_ids;
  if (num_emitted >= request.min_tokens &&
      std::find(stops.begin(), stops.end(), row.tokens[0].token) != stops.end()) {
    emission.finish = FinishReason::kStop;
  } else if (num_emitted == request.max_tokens) {
    emission.finish = FinishReason::kLength;
  }
  return emission;
}

}  // namespace millrace
