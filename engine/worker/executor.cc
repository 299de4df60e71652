#include "engine/worker/executor.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "engine/base/status.h"
#include "engine/worker/step_writer.h"

namespace millrace {

namespace {

int64_t real_time_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
      std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// Of device memory that the driver keeps for the captured kernels of a layer.
constexpr int64_t kGraphBytesPerLayer = 24 << 10;

// Decode batches that are captured: close together where a padded row costs most.
std::vector<int32_t> sizes_to_capture(int32_t max_rows) {
  std::vector<int32_t> sizes;
  for (int32_t size = 1; size < max_rows; size += size < 8 ? size : size < 256 ? 8 : 32) {
    sizes.push_back(size);
  }
  sizes.push_back(max_rows);
  return sizes;
}

}  // namespace

Executor::Executor(const Topology& topology, const EngineConfig& config, int32_t max_position,
    uint32_t num_blocks, Decoder& decoder, Ops& ops, TpOps& tp, PpLink& pp, Device& device)
    : topology_(topology),
      max_position_(max_position),
      max_rows_(config.max_num_seqs),
      max_tokens_(config.max_num_batched_tokens),
      tunes_(config.tune),
      decoder_(decoder),
      ops_(ops),
      tp_(tp),
      pp_(pp),
      device_(device),
      table_(config.max_num_seqs, config.block_size, num_blocks),
      cache_(device, decoder.num_layers(), decoder.attention_shape(), config.block_size,
          num_blocks + 1),  // the last one takes what padding rows write
      generations_(static_cast<size_t>(max_rows_)),
      needs_all_logits_(static_cast<size_t>(max_rows_)),
      flights_(static_cast<size_t>(topology.num_lanes()) + 1) {
  if (device_.asynchronous()) captured_sizes_ = sizes_to_capture(std::min(max_rows_, max_tokens_));
  allocate(config, num_blocks);
}

void Executor::allocate(const EngineConfig& config, uint32_t num_blocks) {
  const auto rows = int64_t{max_rows_};
  const auto tokens = int64_t{max_tokens_};
  const auto make = [&](int64_t bytes) {
    buffers_.push_back(device_.allocate(bytes, "the state of a step"));
    return buffers_.back().data();
  };
  const int64_t blocks = (int64_t{max_position_} + config.block_size - 1) / config.block_size;
  slots_.ids =
      TensorView(make(rows * (max_position_ + 1) * 4), DType::kI32, {rows, max_position_ + 1});
  slots_.block_tables = TensorView(make(rows * blocks * 4), DType::kI32, {rows, blocks});
  slots_.num_prompt = reinterpret_cast<int32_t*>(make(rows * 4));
  slots_.sampling = reinterpret_cast<SamplingParams*>(make(rows * int64_t{sizeof(SamplingParams)}));
  slots_.biases =
      reinterpret_cast<TokenBias*>(make(rows * kMaxLogitBias * int64_t{sizeof(TokenBias)}));
  slots_.num_biases = reinterpret_cast<int32_t*>(make(rows * 4));
  arrays_.ids = reinterpret_cast<int32_t*>(make(tokens * 4));
  arrays_.positions = reinterpret_cast<int32_t*>(make(tokens * 4));
  arrays_.block_tables = reinterpret_cast<const uint32_t**>(make(rows * 8));
  const int64_t outputs = rows + tokens;  // any token may be scored
  arrays_.output_tokens = reinterpret_cast<int32_t*>(make(outputs * 4));
  arrays_.sample_rows = reinterpret_cast<SampleRow*>(make(outputs * int64_t{sizeof(SampleRow)}));
  uint8_t* padding = make(blocks * 4);
  const std::vector<uint32_t> last_block(static_cast<size_t>(blocks), num_blocks);
  device_.copy_to_device(padding,
      {reinterpret_cast<const uint8_t*>(last_block.data()), static_cast<size_t>(blocks) * 4});
  arrays_.padding_block = reinterpret_cast<const uint32_t*>(padding);

  const int64_t words = step_words(config, topology_.num_lanes(), max_position_);
  step_ = device_.allocate(words * 4, "the state of a step");
  hidden_ = device_.tensor(
      device_.activation_dtype(), {tokens, decoder_.hidden_size()}, "the hidden states of a step");
  arrived_ids_ = device_.tensor(DType::kI32, {topology_.num_lanes(), rows}, "sampled ids");
  for (int lane = 0; topology_.pp() > 1 && lane < topology_.num_lanes(); ++lane) {
    lane_hidden_.push_back(device_.tensor(device_.activation_dtype(),
        {tokens, decoder_.hidden_size()}, "the hidden states of a lane"));
  }
  sampled_ = device_.allocate(rows * int64_t{sizeof(SampledRow)}, "sampled tokens");
  for (Flight& flight : flights_) {
    flight.upload = device_.allocate_host(words * 4, "the upload of a step");
    flight.sampled = device_.allocate_host(outputs * int64_t{sizeof(SampledRow)}, "sampled tokens");
    for (auto* event : {&flight.begin, &flight.ready, &flight.end}) *event = device_.make_event();
    if (config.profile) flight.forward = device_.make_event();
  }
}

void Executor::warm_up(std::atomic<uint64_t>& progress) {
  if (!device_.asynchronous()) return;
  const auto run_padding = [&](int32_t rows, int32_t count) {
    StepWriter writer(reinterpret_cast<int32_t*>(flights_[0].upload.data()), step_.bytes() / 4);
    writer.pad_rows(rows, count);
    const auto bytes = static_cast<size_t>(writer.finish({}, false)) * 4;
    device_.enqueue_copy_in(step_.data(), {flights_[0].upload.data(), bytes});
    const BatchView batch = batch_view(rows, rows * count, count == 1 ? rows : 0, count);
    run_stage(batch, rows, progress);
    device_.synchronize();
    return batch;
  };
  // Prompts of one and a half times a power of two tokens have algorithms of their own to measure.
  for (int32_t count = std::min(max_tokens_, max_position_); count > max_rows_; count /= 2) {
    run_padding(1, count);
    if (tunes_ && count / 4 * 3 > max_rows_) run_padding(1, count / 4 * 3);
  }
  for (auto size = captured_sizes_.rbegin(); size != captured_sizes_.rend(); ++size) {
    const BatchView batch = run_padding(*size, 1);
    device_.capture(*size, [&] { run_stage(batch, *size, progress); });
  }
  if (!topology_.last_stage()) return;
  const auto count = static_cast<size_t>(std::min(2, captured_sizes_.back()));
  run_padding(static_cast<int32_t>(count), 1);
  decoder_.sample({arrays_.sample_rows, count}, /*needs_all=*/true,
      reinterpret_cast<SampledRow*>(sampled_.data()), arrived_ids_.view.as<int32_t>());
  device_.synchronize();
}

int64_t Executor::graph_bytes() const {
  return std::ssize(captured_sizes_) * decoder_.num_layers() * kGraphBytesPerLayer;
}

void Executor::run(const StepPlan& plan, std::atomic<uint64_t>& progress) {
  Flight& flight = this->flight(plan.sequence);
  // A flight is used again only when the result after its own, which looks at its end, is taken.
  while (results_taken_.load() + flights_.size() <= plan.sequence + 1) {
    std::this_thread::sleep_for(std::chrono::microseconds(10));
  }
  flight.sequence = plan.sequence;
  if (flight.forward != nullptr) {
    flight.trace = {.sequence = plan.sequence,
        .rows = static_cast<uint32_t>(plan.rows.size()),
        .tokens = static_cast<uint32_t>(plan.num_tokens()),
        .host_begin = real_time_ns()};
  }
  flight.begin->record();
  enqueue(plan, flight, progress);
  flight.end->record();
  if (flight.forward != nullptr) flight.trace.host_end = real_time_ns();
}

void Executor::enqueue(const StepPlan& plan, Flight& flight, std::atomic<uint64_t>& progress) {
  const int lane = static_cast<int>(plan.sequence % static_cast<uint64_t>(topology_.num_lanes()));
  flight.host_wait = std::chrono::nanoseconds(0);
  apply(plan);
  const auto arrived = take_pending(plan);
  remember_outputs(plan, flight);
  if (plan.rows.empty() && arrived.empty()) {
    flight.ready->record();
    if (flight.forward != nullptr) flight.forward->record();
    return;
  }
  const int32_t captured = captured_size(plan);
  const auto num_rows = std::max(captured, static_cast<int32_t>(plan.rows.size()));
  const int64_t words =
      write_step(plan, arrived, num_rows, reinterpret_cast<int32_t*>(flight.upload.data()));
  device_.enqueue_copy_in(step_.data(), {flight.upload.data(), static_cast<size_t>(words) * 4});

  const int32_t tokens = captured > 0 ? captured : plan.num_tokens();
  const auto singles =
      static_cast<int32_t>(std::find_if(plan.rows.begin(), plan.rows.end(), [](const Row& row) {
        return row.count > 1;
      }) - plan.rows.begin());
  int32_t max_count = 1;
  for (const Row& row : plan.rows) max_count = std::max<int32_t>(max_count, row.count);
  const BatchView batch =
      batch_view(num_rows, tokens, captured > 0 ? captured : singles, max_count);
  const bool transfers = topology_.pp() > 1 && tokens > 0;
  const int64_t hidden_bytes = int64_t{tokens} * hidden_.view.stride;
  TensorView passed;
  if (transfers) passed = lane_hidden_[static_cast<size_t>(lane)].view.slice_rows(0, tokens);
  if (transfers) pp_.wait_lane(lane);
  if (transfers && !topology_.first_stage()) {
    pp_.receive_hidden(passed);
    device_.enqueue_copy(hidden_.view.data, passed.data, hidden_bytes);
  }
  flight.ready->record();
  tp_.take_wait_time();
  const auto outputs = captured > 0 ? captured : static_cast<int32_t>(num_sampled(flight));
  if (captured == 0 || !device_.replay(captured)) run_stage(batch, outputs, progress);
  if (flight.forward != nullptr) flight.forward->record();
  if (transfers && !topology_.last_stage()) {
    device_.enqueue_copy(passed.data, hidden_.view.data, hidden_bytes);
    pp_.send_hidden(lane, passed);
  }
  if (topology_.last_stage()) {
    sample(flight, lane);
    score(flight, tokens, progress);
  }
  flight.host_wait = tp_.take_wait_time();
}

void Executor::apply(const StepPlan& plan) {
  const std::string wrong = table_.apply(plan);
  if (!wrong.empty() || table_.hash() != plan.slot_hash) {
    throw Error(ExitCode::kFailure, "plan {} does not follow from this rank's slot table: {}",
        plan.sequence, wrong.empty() ? "the hashes differ" : wrong);
  }
  for (const Admission& admission : plan.admissions) {
    ++generations_[admission.slot];
    const bool is_biased = !admission.logit_bias.empty();
    needs_all_logits_[admission.slot] = is_biased || admission.sampling.needs_all_logits() ? 1 : 0;
  }
  for (const Row& row : plan.rows) {
    CHECK(table_.slot(row.slot).num_computed <= static_cast<uint32_t>(max_position_),
        "slot {} at position {} of {}", row.slot, table_.slot(row.slot).num_computed,
        max_position_);
  }
}

// The ids that this plan's rows may need. The last stage has its own at once; the first gets those
// of plan n - pp by now, and those of older tenants of a slot before it is given away.
std::vector<Executor::PendingIds> Executor::take_pending(const StepPlan& plan) {
  const auto delay = static_cast<uint64_t>(topology_.last_stage() ? 1 : topology_.pp());
  std::vector<PendingIds> taken;
  while (!pending_ids_.empty() && pending_ids_.front().sequence + delay <= plan.sequence) {
    taken.push_back(std::move(pending_ids_.front()));
    pending_ids_.pop_front();
  }
  if (topology_.first_stage() && topology_.pp() > 1) {
    for (const PendingIds& ids : taken) {
      const auto lane =
          static_cast<int64_t>(ids.sequence % static_cast<uint64_t>(topology_.num_lanes()));
      pp_.receive_ids(
          {arrived_ids_.view.row_as<int32_t>(lane), static_cast<size_t>(ids.places.size())});
    }
  }
  for (PendingIds& ids : taken) {
    for (auto& place : ids.places) {
      if (generations_[place.slot] != place.generation) place.position = UINT32_MAX;
    }
  }
  return taken;
}

void Executor::remember_outputs(const StepPlan& plan, Flight& flight) {
  flight.outputs.clear();
  PendingIds pending{plan.sequence, {}};
  for (const Row& row : plan.rows) {
    if (row.output != Output::kNone)
      flight.outputs.push_back({row.slot, row.count, row.output, {}});
    if (!samples(row.output)) continue;
    pending.places.push_back(
        {row.slot, generations_[row.slot], table_.slot(row.slot).num_computed});
  }
  const bool keeps_ids = topology_.first_stage() || topology_.last_stage();
  if (keeps_ids && !pending.places.empty()) pending_ids_.push_back(std::move(pending));
}

size_t Executor::num_sampled(const Flight& flight) const {
  return static_cast<size_t>(
      std::ranges::count_if(flight.outputs, [](const Row& row) { return samples(row.output); }));
}

int64_t Executor::write_step(
    const StepPlan& plan, std::span<const PendingIds> arrived, int32_t rows, int32_t* words) {
  StepWriter writer(words, step_.bytes() / 4);
  for (const Row& row : plan.rows) {
    const SlotTable::Slot& slot = table_.slot(row.slot);
    writer.add_row(row, slot.num_computed - row.count, slot.blocks.size() - row.new_blocks.size());
  }
  writer.pad_rows(rows);
  for (const PendingIds& ids : arrived) {
    const auto lane =
        static_cast<int32_t>(ids.sequence % static_cast<uint64_t>(topology_.num_lanes()));
    for (size_t i = 0; i < ids.places.size(); ++i) {
      const auto& place = ids.places[i];
      if (place.position == UINT32_MAX) continue;
      writer.add_arrival(place.slot, place.position, lane * max_rows_ + static_cast<int32_t>(i));
    }
  }
  return writer.finish(plan.admissions, topology_.first_stage() || topology_.last_stage());
}

BatchView Executor::batch_view(
    int32_t rows, int32_t tokens, int32_t singles, int32_t max_count) const {
  BatchView batch;
  batch.num_tokens = tokens;
  batch.block_size = table_.block_size();
  batch.cu_tokens = {step_cu_tokens(step_.data(), rows), static_cast<size_t>(rows) + 1};
  batch.positions = {arrays_.positions, static_cast<size_t>(tokens)};
  batch.block_tables = {arrays_.block_tables, static_cast<size_t>(rows)};
  batch.num_single = singles;
  batch.max_count = max_count;
  return batch;
}

// The captured batch size that this plan runs at; 0: none, it is no decode step or too large.
int32_t Executor::captured_size(const StepPlan& plan) const {
  const bool decode = std::all_of(plan.rows.begin(), plan.rows.end(),
      [](const Row& row) { return row.count == 1 && row.output == Output::kLast; });
  const auto size = std::lower_bound(
      captured_sizes_.begin(), captured_sizes_.end(), static_cast<int32_t>(plan.rows.size()));
  return decode && !plan.rows.empty() && size != captured_sizes_.end() ? *size : 0;
}

// Everything of a step that may be captured: sizes alone are the host's.
void Executor::run_stage(const BatchView& batch, int32_t outputs, std::atomic<uint64_t>& progress) {
  const auto tokens = static_cast<size_t>(batch.num_tokens);
  ops_.begin_step(header(), arrived_ids_.view.as<int32_t>(), slots_, arrays_, batch,
      decoder_.attention_shape());
  if (tokens == 0) return;
  const TensorView hidden = hidden_.view.slice_rows(0, batch.num_tokens);
  if (topology_.first_stage()) decoder_.embed({arrays_.ids, tokens}, hidden);
  decoder_.forward(hidden, batch, cache_.views(), progress);
  if (topology_.last_stage() && outputs > 0) {
    decoder_.compute_logits(hidden, {arrays_.output_tokens, static_cast<size_t>(outputs)});
  }
}

void Executor::sample(Flight& flight, int lane) {
  const size_t count = num_sampled(flight);
  if (count == 0) return;
  auto* rows = reinterpret_cast<SampledRow*>(sampled_.data());
  const std::span<int32_t> ids(arrived_ids_.view.row_as<int32_t>(lane), count);
  const bool needs_all = std::ranges::any_of(flight.outputs,
      [&](const Row& row) { return samples(row.output) && needs_all_logits_[row.slot] != 0; });
  decoder_.sample({arrays_.sample_rows, count}, needs_all, rows, ids.data());
  if (topology_.tp_rank() == 0) {
    device_.enqueue_copy_out({flight.sampled.data(), count * sizeof(SampledRow)}, sampled_.data());
  }
  if (topology_.pp() > 1) pp_.send_ids(lane, ids);
}

// The logprobs of known ids, from as many rows of logits at a time as there is room for.
void Executor::score(Flight& flight, int32_t tokens, std::atomic<uint64_t>& progress) {
  const TensorView hidden = hidden_.view.slice_rows(0, tokens);
  auto* rows = reinterpret_cast<SampledRow*>(sampled_.data());
  size_t at = num_sampled(flight);
  size_t left = 0;
  for (const Row& row : flight.outputs) left += row.num_scored();
  while (left > 0) {
    const size_t count = std::min(left, static_cast<size_t>(max_rows_));
    decoder_.compute_logits(hidden, {arrays_.output_tokens + at, count});
    decoder_.sample({arrays_.sample_rows + at, count}, /*needs_all=*/true, rows, nullptr);
    if (topology_.tp_rank() == 0) {
      device_.enqueue_copy_out(
          {flight.sampled.data() + at * sizeof(SampledRow), count * sizeof(SampledRow)},
          sampled_.data());
    }
    at += count;
    left -= count;
    progress.fetch_add(1, std::memory_order_relaxed);
  }
}

}  // namespace millrace
