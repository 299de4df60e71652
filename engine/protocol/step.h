// The step contract: StepPlan down, StepResult up. Values with codecs; the same bytes go to every
// rank of a replica. docs/architecture.md tells the way of a step.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/protocol/request.h"

namespace millrace {

using BlockId = uint32_t;

inline constexpr int32_t kMaxRowTokens = (1 << 14) - 1;  // a row's count is 14 bits on the wire
inline constexpr size_t kMaxRows = 65536;                // one per slot

// Which of a row's positions give logits, in two bits: the last samples a token, the others (all
// of them where nothing is sampled) score the known id that follows.
enum class Output : uint8_t { kNone = 0, kLast = 1, kScores = 2, kAll = kLast | kScores };
constexpr bool samples(Output output) { return (static_cast<int>(output) & 1) != 0; }
constexpr bool scores(Output output) { return (static_cast<int>(output) & 2) != 0; }

// A sequence seen for the first time (or again after preemption or replay): everything a slot
// keeps. Its first blocks come with its first row, as for any other sequence.
struct Admission {
  uint16_t slot = 0;
  uint32_t num_computed = 0;  // positions whose KV its blocks already hold
  uint32_t num_prompt = 0;    // of token_ids; the rest was emitted before
  SamplingParams sampling;
  std::vector<int32_t> token_ids;     // all known ids
  std::vector<TokenBias> logit_bias;  // Request's
};
void fields(auto& io, Is<Admission> auto& admission) {
  io(admission.slot, admission.num_computed, admission.num_prompt, admission.sampling,
      admission.token_ids);
  io.list(admission.logit_bias, kMaxLogitBias);
}

// One sequence's share of a step. Four bytes on the wire; new blocks stand in their own section.
struct Row {
  uint16_t slot = 0;
  uint16_t count = 0;  // tokens from the slot's position on
  Output output = Output::kNone;
  std::vector<BlockId> new_blocks;  // appended to the slot's block table before the step

  size_t num_sampled() const { return samples(output) ? 1 : 0; }
  size_t num_scored() const { return scores(output) ? count - num_sampled() : 0; }
};

// Plans of a replica carry one sequence number from 0 on; plan n uses lane n mod L, L = pp + 1.
struct StepPlan {
  uint64_t sequence = 0;
  std::vector<uint16_t> releases;  // slots freed before the admissions are read
  std::vector<Admission> admissions;
  std::vector<Row> rows;
  uint64_t slot_hash = 0;  // of the slot table after this plan (SlotTable::hash)

  int32_t num_tokens() const {
    int32_t n = 0;
    for (const Row& row : rows) n += row.count;
    return n;
  }
};

enum class RowStatus : uint8_t { kOk, kNonFinite };

// One entry per row with output, in the plan's order.
struct RowResult {
  uint16_t slot = 0;
  RowStatus status = RowStatus::kOk;
  std::vector<SampledToken> tokens;  // the one that was sampled, if any
  std::vector<SampledToken> scored;  // the known ids after the row's positions, in their order
};
void fields(auto& io, Is<RowResult> auto& row) {
  io(row.slot, row.status);
  io.list(row.tokens, kMaxRowTokens);
  io.list(row.scored, kMaxRowTokens);
}

// Sent by tp rank 0 of every stage; rows come from the last stage alone.
struct StepResult {
  uint64_t sequence = 0;
  uint16_t stage = 0;
  uint32_t compute_us = 0;  // time of this step in kernels
  uint32_t comm_us = 0;     // waiting in collectives
  uint32_t idle_us = 0;     // waiting for a plan or for another stage, since the last step
  uint32_t wait_us = 0;     // of idle_us: the plan is here, what another stage sends is not
  std::vector<RowResult> rows;
};
void fields(auto& io, Is<StepResult> auto& result) {
  io(result.sequence, result.stage, result.compute_us, result.comm_us, result.idle_us,
      result.wait_us);
  io.list(result.rows, kMaxRows);
}
bool within_limits(const StepResult& result);

Bytes encode(const StepPlan& plan);
// False when the bytes are not exactly one well-formed plan within the protocol's limits.
bool decode(std::span<const uint8_t> bytes, StepPlan* plan);

}  // namespace millrace
