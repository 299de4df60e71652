#include "launch/sim/scheduler_bench.h"

#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <utility>

#include "engine/base/status.h"
#include "engine/coordinator/coordinator.h"
#include "launch/sim/plan_follower.h"

namespace millrace {

namespace {

constexpr int32_t kMaxSlots = 65535;
constexpr int32_t kPromptTokens = 512;
constexpr double kNanosPerMicro = 1e3;

// Not the wall clock: other processes may share the core.
double cpu_us() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return (static_cast<double>(now.tv_sec) * 1e9 + static_cast<double>(now.tv_nsec)) /
         kNanosPerMicro;
}

// A coordinator whose ranks answer at once.
class Loop {
 public:
  Loop(const EngineConfig& engine, uint32_t num_blocks)
      : engine_(engine), coordinator_(config_of(engine), /*now=*/0) {
    const int num_ranks = engine.tp * engine.pp;
    for (int rank = 0; rank < num_ranks; ++rank) {
      handle(FrameEvent{rank, ready_frame(rank, num_blocks, /*epoch=*/1)});
    }
    for (int rank = 0; rank < num_ranks; ++rank) {
      handle(FrameEvent{rank, started_frame(/*epoch=*/1)});
    }
  }

  // Returns the CPU microseconds of the coordinator alone.
  double handle(Event event) {
    actions_.clear();
    const double begin = cpu_us();
    coordinator_.handle(std::move(event), /*now=*/0, actions_);
    const double spent = cpu_us() - begin;
    for (const Action& action : actions_) {
      const auto* send = std::get_if<SendAll>(&action);
      FrameHeader header;
      if (send == nullptr || !decode(*send->frame, &header)) continue;
      if (header.type == FrameType::kPlan) plans_.push_back(send->frame);
    }
    return spent;
  }

  // All stages answer the oldest plan.
  double step() {
    CHECK(!plans_.empty(), "no plan is due");
    StepPlan plan;
    const std::shared_ptr<const Bytes> frame = std::move(plans_.front());
    plans_.pop_front();
    CHECK(decode(std::span(*frame).subspan(kFrameHeaderBytes), &plan), "a torn plan");
    num_rows_ = plan.rows.size();
    prompts_left_ = plan.num_tokens() > static_cast<int32_t>(num_rows_) || stats().waiting > 0;
    plan_bytes_ = frame->size();
    double spent = 0;
    for (int stage = 0; stage < engine_.pp; ++stage) {
      const StepResult result = PlanFollower::answer(plan, stage, stage + 1 == engine_.pp);
      spent += handle(FrameEvent{
          stage * engine_.tp, make_frame(FrameType::kResult, /*epoch=*/1, encode(result))});
    }
    return spent;
  }

  // Of the newest step.
  size_t num_rows() const { return num_rows_; }
  size_t plan_bytes() const { return plan_bytes_; }
  bool prompts_left() const { return prompts_left_; }
  SchedulerStats stats() const { return coordinator_.stats(0).scheduler; }

 private:
  static CoordinatorConfig config_of(const EngineConfig& engine) {
    CoordinatorConfig config;
    config.engine = engine;
    config.max_queue = kMaxSlots;
    return config;
  }

  const EngineConfig engine_;
  Coordinator coordinator_;
  std::vector<Action> actions_;
  std::deque<std::shared_ptr<const Bytes>> plans_;  // in flight
  size_t num_rows_ = 0;
  size_t plan_bytes_ = 0;
  bool prompts_left_ = false;
};

struct Figures {
  double mean_us, median_us, p99_us, rows, plan_bytes, max_plan_bytes;
};

Figures run(EngineConfig engine, int32_t num_sequences, int32_t num_steps) {
  engine.max_num_seqs = num_sequences;
  // Every sequence goes on until after the last step: prompt, then a token for each step.
  const int32_t steps_of_prompts =
      num_sequences * kPromptTokens / engine.max_num_batched_tokens + 2 * engine.pp + 8;
  const int32_t output = (num_steps + steps_of_prompts) * 2;
  const int32_t blocks = (kPromptTokens + output) / engine.block_size + 1;
  Loop loop(engine, static_cast<uint32_t>(num_sequences) * static_cast<uint32_t>(blocks));
  for (int32_t i = 0; i < num_sequences; ++i) {
    Request request;
    for (int32_t t = 0; t < kPromptTokens; ++t) request.prompt.push_back(i * kPromptTokens + t);
    request.max_tokens = output;
    loop.handle(SubmitEvent{static_cast<RequestId>(i), std::move(request)});
  }
  // All decode once a lap over the lanes and stages carries no prompt.
  for (int32_t quiet = 0; quiet < 2 * engine.pp + 2; ++quiet) {
    loop.step();
    if (loop.prompts_left()) quiet = 0;
  }
  std::vector<double> spent;
  Figures figures{};
  for (int32_t i = 0; i < num_steps; ++i) {
    spent.push_back(loop.step());
    figures.mean_us += spent.back();
    figures.rows += static_cast<double>(loop.num_rows());
    figures.plan_bytes += static_cast<double>(loop.plan_bytes());
    figures.max_plan_bytes =
        std::max(figures.max_plan_bytes, static_cast<double>(loop.plan_bytes()));
  }
  for (double* sum : {&figures.mean_us, &figures.rows, &figures.plan_bytes}) *sum /= num_steps;
  std::ranges::sort(spent);
  figures.median_us = spent[spent.size() / 2];
  figures.p99_us = spent[spent.size() * 99 / 100];
  return figures;
}

}  // namespace

SchedulerBenchReport bench_scheduler(const SchedulerBenchConfig& config) {
  const EngineConfig& engine = config.engine;
  std::string table = fmt::format(
      "scheduler and coordinator, tp {} x pp {}: CPU us a step, {} steps of decoding\n"
      "  {:>9}{:>11}{:>9}{:>9}{:>9}{:>12}{:>12}\n",
      engine.tp, engine.pp, config.num_steps, "sequences", "rows/step", "mean", "median", "p99",
      "plan bytes", "the largest");
  boost::json::array runs;
  for (const int32_t sequences : config.sequences) {
    // Beyond it no step would have room for a prompt, and they would never all decode.
    if (sequences < 1 || sequences >= engine.max_num_batched_tokens) {
      throw Error(ExitCode::kUsage,
          "--sequences {}: from 1 to less than --max-num-batched-tokens ({})", sequences,
          engine.max_num_batched_tokens);
    }
    const Figures f = run(engine, sequences, config.num_steps);
    table += fmt::format("  {:9}{:11.0f}{:9.1f}{:9.1f}{:9.1f}{:12.0f}{:12.0f}\n", sequences, f.rows,
        f.mean_us, f.median_us, f.p99_us, f.plan_bytes, f.max_plan_bytes);
    runs.push_back({{"sequences", sequences}, {"rows_per_step", f.rows}, {"mean_us", f.mean_us},
        {"median_us", f.median_us}, {"p99_us", f.p99_us}, {"plan_bytes", f.plan_bytes},
        {"max_plan_bytes", f.max_plan_bytes}});
  }
  boost::json::object json = {
      {"tp", engine.tp}, {"pp", engine.pp}, {"steps", config.num_steps}, {"runs", std::move(runs)}};
  return {std::move(table), boost::json::serialize(json)};
}

}  // namespace millrace
