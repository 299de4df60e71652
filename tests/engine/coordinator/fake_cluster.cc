#include "tests/engine/coordinator/fake_cluster.h"

#include <gtest/gtest.h>

#include <utility>

namespace millrace {

CoordinatorConfig cluster_config(int tp, int pp) {
  CoordinatorConfig config;
  config.engine.model_path = "/models/tiny";
  config.engine.tp = tp;
  config.engine.pp = pp;
  config.engine.max_num_seqs = 6;
  config.engine.max_num_batched_tokens = 32;
  config.epoch = 3;
  config.max_queue = 10;
  return config;
}

FakeCluster::FakeCluster(const CoordinatorConfig& config)
    : config(config), coordinator(config, now), answered_(static_cast<size_t>(config.engine.pp)) {}

void FakeCluster::handle(Event event) {
  std::vector<Action> actions;
  coordinator.handle(std::move(event), now, actions);
  for (const Action& action : actions) {
    std::visit([this](const auto& each) { perform(each); }, action);
  }
  ASSERT_EQ(coordinator.check_integrity(), "");
  if (!finished) return;
  EXPECT_FALSE(coordinator.stats(now).healthy);
  for (const auto& [id, answer] : answers) EXPECT_EQ(answer.num_ends, 1) << "request " << id;
}

void FakeCluster::tick(Millis after) {
  now += after;
  handle(TickEvent{});
}

void FakeCluster::frame(int rank, FrameType type, const Bytes& body) {
  handle(FrameEvent{rank, make_frame(type, config.epoch, body)});
}

Ready FakeCluster::ready_of(int rank) const {
  return {.rank = rank,
      .weight_bytes = 1,
      .kv_bytes_per_block = 1,
      .num_blocks = 40u - static_cast<uint32_t>(rank),
      .config_hash = 77,
      .description = "cpu"};
}

void FakeCluster::ready_all() {
  for (int rank = 0; rank < num_ranks(); ++rank) ready(rank);
  ASSERT_EQ(sent.back(), FrameType::kStart);
  ASSERT_FALSE(became_ready);
}

void FakeCluster::started_all() {
  ready_all();
  for (int rank = 0; rank < num_ranks(); ++rank) started(rank);
  ASSERT_TRUE(became_ready);
}

void FakeCluster::beat(int rank, uint64_t progress) {
  Heartbeat heartbeat{.rank = rank, .steps_done = 0, .progress = progress};
  heartbeat.steps_done = answered_[static_cast<size_t>(rank / config.engine.tp)];
  frame(rank, FrameType::kHeartbeat, encode(heartbeat));
}

void FakeCluster::beat_all() {
  ++progress_;
  for (int rank = 0; rank < num_ranks(); ++rank) beat(rank, progress_);
}

void FakeCluster::submit(RequestId id, int prompt, int max_tokens, bool more) {
  Request request;
  request.prompt.assign(static_cast<size_t>(prompt), static_cast<int32_t>(id));
  request.max_tokens = max_tokens;
  answers[id].num_prompt = prompt;
  handle(SubmitEvent{id, std::move(request), more});
}

int FakeCluster::num_unanswered(int stage) const {
  return static_cast<int>(results_.size() - answered_[static_cast<size_t>(stage)]);
}

std::optional<StepResult> FakeCluster::next_result(int stage) {
  if (num_unanswered(stage) == 0) return std::nullopt;
  StepResult result = results_[answered_[static_cast<size_t>(stage)]];
  result.stage = static_cast<uint16_t>(stage);
  result.compute_us = 10;
  result.comm_us = 2;
  result.idle_us = 4;
  result.wait_us = 3;
  if (stage + 1 < config.engine.pp) result.rows.clear();
  return result;
}

bool FakeCluster::step(int stage) {
  const auto result = next_result(stage);
  if (!result) return false;
  ++answered_[static_cast<size_t>(stage)];
  frame(stage * config.engine.tp, FrameType::kResult, encode(*result));
  return true;
}

void FakeCluster::run_dry() {
  bool moved = true;
  while (moved) {
    moved = false;
    for (int stage = 0; stage < config.engine.pp; ++stage) moved |= step(stage);
  }
}

void FakeCluster::perform(const SendAll& action) {
  ASSERT_FALSE(finished);
  const std::span<const uint8_t> frame(*action.frame);
  FrameHeader header;
  ASSERT_TRUE(decode(frame, &header));
  ASSERT_EQ(frame.size(), kFrameHeaderBytes + header.length);
  EXPECT_EQ(header.epoch, config.epoch);
  sent.push_back(header.type);
  const auto body = frame.subspan(kFrameHeaderBytes);
  if (header.type == FrameType::kWelcome) {
    ASSERT_TRUE(decode(body, &welcome.emplace()));
  } else if (header.type == FrameType::kStart) {
    Start start;
    ASSERT_TRUE(decode(body, &start));
    replica_ = std::make_unique<FakeReplica>(SchedulerConfig{.pp = config.engine.pp,
        .block_size = config.engine.block_size,
        .num_blocks = start.num_blocks,
        .max_num_seqs = config.engine.max_num_seqs,
        .max_num_batched_tokens = config.engine.max_num_batched_tokens});
  } else if (header.type == FrameType::kPlan) {
    StepPlan plan;
    ASSERT_TRUE(decode(body, &plan));
    results_.push_back(replica_->run(plan));
    EXPECT_LE(num_unanswered(config.engine.pp - 1), config.engine.pp + 1);
  }
}

void FakeCluster::perform(const Emit& action) {
  const Emission& emission = action.emission;
  ASSERT_TRUE(answers.contains(emission.id));
  Answer& answer = answers[emission.id];
  // After the end there are refusals only.
  EXPECT_TRUE(!finished || emission.status.code == ErrorCode::kUnavailable);
  EXPECT_EQ(answer.num_ends, 0) << "request " << emission.id << " goes on after its end";
  for (const SampledToken& token : emission.tokens) {
    const auto position = answer.num_prompt + static_cast<int64_t>(answer.tokens.size());
    EXPECT_EQ(token.token, fake_token(static_cast<int32_t>(emission.id), position));
    answer.tokens.push_back(token.token);
  }
  if (emission.finish == FinishReason::kNone) return;
  answer.finish = emission.finish;
  answer.status = emission.status;
  ++answer.num_ends;
}

void FakeCluster::perform(const BecameReady& action) {
  EXPECT_FALSE(became_ready);
  became_ready = action;
}

void FakeCluster::perform(const Finished& action) {
  EXPECT_FALSE(finished);
  finished = action;
}

}  // namespace millrace
