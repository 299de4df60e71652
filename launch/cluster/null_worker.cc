#include "launch/cluster/null_worker.h"

#include <algorithm>
#include <thread>

#include "engine/base/check.h"
#include "engine/base/hash.h"
#include "engine/model/checkpoint.h"
#include "engine/protocol/step.h"
#include "engine/worker/session.h"

namespace millrace {

namespace {

using Clock = std::chrono::steady_clock;

// As much of a cache as a worker would take at most.
Ready make_ready(const EngineConfig& config, const ModelConfig& model) {
  const int32_t longest = config.max_model_len > 0 ? config.max_model_len : model.max_position;
  const int64_t blocks = (int64_t{longest} + config.block_size - 1) / config.block_size;
  return {.weight_bytes = 1,
      .kv_bytes_per_block = 1,
      .num_blocks = static_cast<uint32_t>(blocks * config.max_num_seqs),
      .config_hash = model.hash(),
      .description = "no model: pseudorandom tokens"};
}

StepResult make_result(const StepPlan& plan, int32_t vocab_size) {
  StepResult result{.sequence = plan.sequence};
  for (const Row& row : plan.rows) {
    if (row.output == Output::kNone) continue;
    const uint64_t drawn = mix64(plan.sequence << 16 | row.slot);
    const auto token = static_cast<int32_t>(drawn % static_cast<uint64_t>(vocab_size));
    result.rows.push_back({.slot = row.slot, .tokens = {SampledToken{.token = token}}});
  }
  return result;
}

template <typename T>
T read_body(const WorkerSession::Frame& frame) {
  T value;
  CHECK(decode(frame.body(), &value), "a torn frame");
  return value;
}

}  // namespace

void run_null_worker(CoordinatorLink& link, std::chrono::microseconds step_time) {
  WorkerSession session(/*rank=*/0, link, /*own_process=*/false);
  int32_t vocab_size = 0;
  Clock::time_point free_at = Clock::now();  // steps follow one another
  while (const auto frame = session.receive()) {
    if (frame->type == FrameType::kWelcome) {
      const auto config = read_body<EngineConfig>(*frame);
      const auto model = open_checkpoint(config.model_path, config.dummy_weights);
      vocab_size = model->config().vocab_size;
      session.send(FrameType::kReady, encode(make_ready(config, model->config())));
    } else if (frame->type == FrameType::kStart) {
      session.send(FrameType::kStarted, {});
    } else if (frame->type == FrameType::kPlan) {
      const StepResult result = make_result(read_body<StepPlan>(*frame), vocab_size);
      free_at = std::max(free_at, Clock::now()) + step_time;
      std::this_thread::sleep_until(free_at);
      session.send(FrameType::kResult, encode(result));
      session.step_done();
    } else {
      return;  // shut down
    }
  }
}

}  // namespace millrace
