#include "engine/worker/executor.h"

#include <fmt/format.h>

#include "engine/base/status.h"

namespace millrace {

using Clock = std::chrono::steady_clock;

namespace {

uint32_t to_us(std::chrono::nanoseconds time) {
  return static_cast<uint32_t>(std::chrono::duration_cast<std::chrono::microseconds>(time).count());
}

}  // namespace

Executor::Executor(const Topology& topology, const EngineConfig& config, int32_t max_position,
    uint32_t num_blocks, Decoder& decoder, Ops& ops, TpOps& tp, PpLink& pp, Device& device)
    : topology_(topology),
      max_position_(max_position),
      decoder_(decoder),
      ops_(ops),
      tp_(tp),
      pp_(pp),
      table_(config.max_num_seqs, config.block_size, num_blocks),
      tokens_(config.max_num_seqs),
      cache_(
          device, decoder.num_layers(), decoder.attention_shape(), config.block_size, num_blocks) {
  for (int lane = 0; lane < topology.num_lanes(); ++lane) {
    lane_hidden_.push_back(device.tensor(DType::kF32,
        {config.max_num_batched_tokens, decoder.hidden_size()}, "the hidden states of a lane"));
  }
}

StepResult Executor::run(const StepPlan& plan, std::atomic<uint64_t>& progress) {
  const auto begin = Clock::now();
  StepResult result;
  result.sequence = plan.sequence;
  result.stage = static_cast<uint16_t>(topology_.pp_rank());
  waited_for_stage_ = std::chrono::nanoseconds(0);

  const auto pp = static_cast<uint64_t>(topology_.pp());
  if (topology_.first_stage() && plan.sequence >= pp) receive_ids(plan.sequence - pp);
  apply(plan);
  build_input(plan);
  if (!plan.rows.empty()) {
    const int lane = static_cast<int>(plan.sequence % static_cast<uint64_t>(topology_.num_lanes()));
    const TensorView hidden =
        lane_hidden_[static_cast<size_t>(lane)].view.slice_rows(0, plan.num_tokens());
    pp_.wait_lane(lane);
    run_stage(lane, hidden, progress);
    if (topology_.last_stage() && !input_.output_rows.empty()) sample(lane, hidden, result);
  }

  const auto communication = pp_.take_wait_time() + tp_.take_wait_time();
  const auto total = Clock::now() - begin - waited_for_stage_;
  result.comm_us = to_us(communication);
  result.compute_us = to_us(total - communication);
  result.idle_us = to_us(waited_for_stage_);
  return result;
}

void Executor::receive_ids(uint64_t up_to_sequence) {
  std::vector<int32_t> ids;
  while (!pending_ids_.empty() && pending_ids_.front().sequence <= up_to_sequence) {
    const PendingIds& pending = pending_ids_.front();
    ids.resize(pending.slots.size());
    pp_.receive_ids(ids);
    for (size_t i = 0; i < ids.size(); ++i) {
      tokens_.append(pending.slots[i].first, pending.slots[i].second, ids[i]);
    }
    pending_ids_.pop_front();
  }
}

void Executor::apply(const StepPlan& plan) {
  const std::string wrong = table_.apply(plan);
  if (!wrong.empty() || table_.hash() != plan.slot_hash) {
    throw Error(
        ExitCode::kFailure, fmt::format("plan {} does not follow from this rank's slot table: {}",
                                plan.sequence, wrong.empty() ? "the hashes differ" : wrong));
  }
  if (!topology_.first_stage() && !topology_.last_stage()) return;
  for (const Admission& admission : plan.admissions) tokens_.admit(admission);
}

void Executor::build_input(const StepPlan& plan) {
  input_ = StepInput();
  input_.cu_tokens.push_back(0);
  for (const Row& row : plan.rows) {
    const SlotTable::Slot& slot = table_.slot(row.slot);
    const uint32_t first = slot.num_computed - row.count;
    CHECK(slot.num_computed <= static_cast<uint32_t>(max_position_), "slot {} at position {} of {}",
        row.slot, slot.num_computed, max_position_);
    for (uint32_t i = 0; i < row.count; ++i) {
      input_.positions.push_back(static_cast<int32_t>(first + i));
      if (topology_.first_stage()) {
        const auto& ids = tokens_[row.slot].ids;
        CHECK(first + i < ids.size(), "slot {} has {} ids, position {} is planned", row.slot,
            ids.size(), first + i);
        input_.ids.push_back(ids[first + i]);
      }
    }
    input_.block_tables.push_back(slot.blocks.data());
    input_.cu_tokens.push_back(static_cast<int32_t>(input_.positions.size()));
    if (row.output == Output::kLast) {
      input_.output_rows.push_back(static_cast<int32_t>(input_.positions.size()) - 1);
      input_.output_slots.push_back(row.slot);
    }
  }
  if (topology_.first_stage() && !input_.output_slots.empty()) {
    PendingIds pending{plan.sequence, {}};
    for (const uint16_t slot : input_.output_slots) {
      pending.slots.emplace_back(slot, tokens_[slot].generation);
    }
    pending_ids_.push_back(std::move(pending));
  }
}

void Executor::run_stage(int lane, const TensorView& hidden, std::atomic<uint64_t>& progress) {
  if (topology_.first_stage()) {
    decoder_.embed(input_.ids, hidden);
  } else {
    const auto before = Clock::now();
    pp_.receive_hidden(hidden);
    waited_for_stage_ = Clock::now() - before;
    pp_.take_wait_time();  // counted as idle: the stage before was not done
  }
  BatchView batch;
  batch.num_tokens = static_cast<int32_t>(input_.positions.size());
  batch.block_size = table_.block_size();
  batch.cu_tokens = input_.cu_tokens;
  batch.positions = input_.positions;
  batch.block_tables = input_.block_tables;
  decoder_.forward(hidden, batch, cache_.views(), progress);
  if (!topology_.last_stage()) pp_.send_hidden(lane, hidden);
}

void Executor::sample(int lane, const TensorView& hidden, StepResult& result) {
  const TensorView logits = decoder_.logits(hidden, input_.output_rows);
  const size_t count = input_.output_slots.size();
  std::vector<SampleRow> rows(count);
  for (size_t i = 0; i < count; ++i) {
    const uint16_t index = input_.output_slots[i];
    const SlotTokens::Slot& slot = tokens_[index];
    rows[i].params = &slot.sampling;
    rows[i].position = table_.slot(index).num_computed;
    if (slot.sampling.has_penalties()) {
      rows[i].prompt_ids = slot.prompt();
      rows[i].output_ids = slot.output();
    }
  }
  std::vector<SampleResult> sampled(count);
  ops_.sample(logits, rows, sampled);

  std::vector<int32_t> ids(count, 0);
  result.rows.resize(count);
  for (size_t i = 0; i < count; ++i) {
    const uint16_t index = input_.output_slots[i];
    RowResult& row = result.rows[i];
    row.slot = index;
    row.status = sampled[i].finite ? RowStatus::kOk : RowStatus::kNonFinite;
    if (sampled[i].finite) {
      ids[i] = sampled[i].token.token;
      row.tokens.push_back(std::move(sampled[i].token));
    }
    // A lone stage gets its ids through the link like any first stage.
    if (!topology_.first_stage()) tokens_.append(index, tokens_[index].generation, ids[i]);
  }
  pp_.send_ids(lane, ids);
}

}  // namespace millrace
