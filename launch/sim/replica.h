// One replica without GPUs: the real Coordinator, and stages that take the time that StageCost
// says. Pure: driven by (event, now), it says which frames its ranks will send, and when. One
// thread.
//
// A plan goes through the stages in order and a stage takes its plans in order, so when a plan is
// sent, all its times are known: a stage begins once it has the plan, is free, and holds the hidden
// states, or on the first stage the ids that plan n - pp sampled.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "engine/coordinator/coordinator.h"
#include "launch/sim/plan_follower.h"
#include "launch/sim/stage_cost.h"

namespace millrace {

struct ReplicaConfig {
  ModelConfig model;
  EngineConfig engine;  // degrees, steps and slots; model_path is a name only
  Gpu gpu;
  std::vector<StepModel> step_models;  // per stage, measured: in place of model and gpu
  int gpus_per_host = 8;
  double network_bytes_per_s = 50e9;  // between hosts, one way, per GPU
  uint32_t num_blocks = 0;            // of the KV cache; 0: what fits the GPUs' memory
  int32_t max_queue = 1 << 30;
  double max_stretch = 0;  // CoordinatorConfig
  Balance balance = Balance::kTime;
};

// A span of simulated time in seconds.
struct Span {
  double begin = 0;
  double end = 0;
};

class Replica {
 public:
  // What a rank will send, and when the coordinator has it.
  struct Message {
    double at_s = 0;
    int rank = 0;
    Bytes frame;
  };
  // Of one stage, since the start. Idle: not computing, the waits for transfers included.
  struct StageTimes {
    int num_layers = 0;
    std::vector<Span> idle;  // in order, before each step
    double busy_s = 0;
    double reduce_s = 0;    // of busy_s: all-reduces of tensor parallelism
    double transfer_s = 0;  // of idle: only the transfer was waited for
  };

  // Throws Error: kLayout when the model cannot be cut so or a stage does not fit a host,
  // kOutOfMemory when a stage does not fit its GPU.
  explicit Replica(const ReplicaConfig& config);

  // Ready to serve from the first call on. Appends what the requests get, and what the ranks will
  // send: the caller hands each Message back as a FrameEvent at its time, in order.
  void handle(
      Event event, double now_s, std::vector<Emission>& emissions, std::vector<Message>& messages);

  uint32_t num_blocks() const { return num_blocks_; }
  const std::vector<StageTimes>& stages() const { return times_; }
  SchedulerStats stats() const { return coordinator_.stats(0).scheduler; }

 private:
  void perform(const Action& action, double now_s, std::vector<Emission>& emissions,
      std::vector<Message>& messages);
  void run(const StepPlan& plan, double now_s, std::vector<Message>& messages);
  // Stage `s` runs `work` during `step`; it was free and had the plan from `ready` on, and waited
  // for the transfer alone from `sent` on.
  void account(size_t s, const LayerWork& work, const Span& step, double ready, double sent,
      StepResult& result);
  uint32_t count_blocks() const;
  double step_seconds(size_t stage, const LayerWork& work) const;
  // Seconds for the hidden states of `tokens` from a stage to the next.
  double transfer_seconds(int stage, double tokens) const;

  const ReplicaConfig config_;
  Coordinator coordinator_;
  PlanFollower follower_;
  std::vector<StageCost> costs_;  // none with measured step models
  uint32_t num_blocks_ = 0;
  std::vector<Action> actions_;  // of one event
  std::vector<StageTimes> times_;
  std::vector<double> free_at_;    // per stage
  std::vector<double> link_free_;  // per stage: the link to it
  std::deque<double> sampled_at_;  // of the newest plans, the last pp of them, oldest first
};

}  // namespace millrace
