#include "launch/cluster/null_worker.h"

#include <algorithm>
#include <thread>
#include <vector>

#include "engine/base/check.h"
#include "engine/base/hash.h"
#include "engine/model/checkpoint.h"
#include "engine/protocol/step.h"
#include "engine/worker/session.h"

namespace millrace {

namespace {

using Clock = std::chrono::steady_clock;

class NullRank {
 public:
  explicit NullRank(const EngineConfig& config)
      : model_(open_checkpoint(config.model_path, config.dummy_weights)->config()),
        num_logprobs_(static_cast<size_t>(config.max_num_seqs), -1) {
    // As much of a cache as a worker would take at most.
    const int32_t longest = config.max_model_len > 0 ? config.max_model_len : model_.max_position;
    ready_.num_blocks = static_cast<uint32_t>(
        int64_t{longest + config.block_size - 1} / config.block_size * config.max_num_seqs);
    ready_.weight_bytes = ready_.kv_bytes_per_block = 1;
    ready_.config_hash = model_.hash();
    ready_.description = "no model: pseudorandom tokens";
  }

  const Ready& ready() const { return ready_; }

  StepResult step(const StepPlan& plan) {
    for (const Admission& admission : plan.admissions)
      num_logprobs_[admission.slot] = admission.sampling.num_logprobs;
    StepResult result{.sequence = plan.sequence};
    for (const Row& row : plan.rows) {
      if (row.output == Output::kNone) continue;
      const uint64_t drawn = mix64(plan.sequence << 16 | row.slot);
      result.rows.push_back(
          {.slot = row.slot, .tokens = {sampled(drawn, num_logprobs_[row.slot])}});
    }
    return result;
  }

 private:
  // The k-th likeliest has half the probability of the one before.
  SampledToken sampled(uint64_t drawn, int32_t num_logprobs) const {
    const auto vocab = static_cast<uint64_t>(model_.vocab_size);
    const auto entry = [&](int32_t rank) {
      return TokenLogprob{static_cast<int32_t>((drawn + static_cast<uint64_t>(rank)) % vocab),
          -0.6931472F * static_cast<float>(rank + 1)};
    };
    SampledToken token{.token = entry(0).token, .logprob = entry(0).logprob};
    for (int32_t rank = 0; rank < num_logprobs; ++rank) token.top.push_back(entry(rank));
    return token;
  }

  const ModelConfig model_;
  std::vector<int32_t> num_logprobs_;  // by slot
  Ready ready_;
};

template <typename T>
T read_body(const WorkerSession::Frame& frame) {
  T value;
  CHECK(decode(frame.body(), &value), "a torn frame");
  return value;
}

}  // namespace

void run_null_worker(CoordinatorLink& link, std::chrono::microseconds step_time) {
  WorkerSession session(/*rank=*/0, link, /*own_process=*/false);
  std::unique_ptr<NullRank> rank;
  Clock::time_point free_at = Clock::now();  // steps follow one another
  while (const auto frame = session.receive()) {
    switch (frame->type) {
      case FrameType::kWelcome:
        rank = std::make_unique<NullRank>(read_body<EngineConfig>(*frame));
        session.send(FrameType::kReady, encode(rank->ready()));
        break;
      case FrameType::kStart: session.send(FrameType::kStarted, {}); break;
      case FrameType::kPlan: {
        const StepResult result = rank->step(read_body<StepPlan>(*frame));
        free_at = std::max(free_at, Clock::now()) + step_time;
        std::this_thread::sleep_until(free_at);
        session.send(FrameType::kResult, encode(result));
        session.step_done();
        break;
      }
      default: return;  // shut down
    }
  }
}

}  // namespace millrace
