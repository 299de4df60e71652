// What the decoders must refuse, field by field.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "engine/protocol/messages.h"
#include "engine/protocol/step.h"
#include "engine/protocol/trace.h"

namespace millrace {
namespace {

TEST(Limits, AHugeCountTakesNoMemory) {
  ByteWriter out;
  out.put(uint64_t{0});
  out.put(uint64_t{0});
  out.put(uint16_t{1});
  out.put(uint16_t{3});           // rows
  out.put(uint32_t{0xffffffff});  // of four gigabytes
  StepPlan plan;
  EXPECT_FALSE(decode(out.take(), &plan));

  StepResult result;
  result.rows.push_back({1, RowStatus::kOk, {SampledToken{}}});
  Bytes bytes = encode(result);
  std::memset(bytes.data() + bytes.size() - 4, 0xff, 4);  // the number of alternatives
  EXPECT_FALSE(decode(bytes, &result));
}

TEST(Limits, PlansOutsideTheLimitsAreRefused) {
  const auto plan_with = [](uint16_t type, std::function<void(ByteWriter&)> body, int times = 1) {
    ByteWriter out;
    out.put(uint64_t{5});
    out.put(uint64_t{6});
    out.put(static_cast<uint16_t>(times));
    for (int i = 0; i < times; ++i) {
      ByteWriter section;
      body(section);
      const Bytes bytes = section.take();
      out.put(type);
      out.put(static_cast<uint32_t>(bytes.size()));
      for (const uint8_t byte : bytes) out.put(byte);
    }
    return out.take();
  };
  const auto row = [](uint16_t word) {
    return [word](ByteWriter& out) {
      out.put(uint16_t{1});
      out.put(word);
    };
  };
  StepPlan plan;
  EXPECT_TRUE(decode(plan_with(3, row(1)), &plan));
  EXPECT_TRUE(decode(plan_with(3, row(1 << 14 | 1)), &plan));
  EXPECT_TRUE(decode(plan_with(3, row(2 << 14 | 1)), &plan));
  EXPECT_TRUE(decode(plan_with(3, row(3 << 14 | 1)), &plan));
  EXPECT_FALSE(decode(plan_with(3, row(1 << 14)), &plan)) << "no tokens";
  EXPECT_FALSE(decode(plan_with(3, row(1), 2), &plan)) << "a section twice";
  EXPECT_FALSE(decode(plan_with(5, row(1)), &plan)) << "an unknown section";
  EXPECT_FALSE(decode(plan_with(0, row(1)), &plan)) << "an unknown section";
  EXPECT_FALSE(decode(plan_with(3, [](ByteWriter&) {}), &plan)) << "an empty section";
  EXPECT_FALSE(decode(plan_with(4, row(1)), &plan)) << "blocks of a row that is not there";
}

TEST(Limits, AdmissionsOutsideTheLimitsAreRefused) {
  const auto admits = [](std::function<void(Admission&)> change) {
    StepPlan plan;
    plan.admissions.push_back({0, 0, 2, SamplingParams{}, {1, 2, 3}, {{4, 1}, {6, -1}}});
    change(plan.admissions[0]);
    StepPlan read;
    return decode(encode(plan), &read);
  };
  const float nan = std::nanf("");
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_TRUE(admits([](Admission&) {}));
  EXPECT_FALSE(admits([](Admission& a) { a.num_computed = 3; }));
  EXPECT_FALSE(admits([](Admission& a) { a.num_prompt = 4; }));
  EXPECT_FALSE(admits([](Admission& a) { a.num_prompt = 0; }));
  EXPECT_FALSE(admits([](Admission& a) { a.token_ids[1] = -1; }));
  EXPECT_FALSE(admits([](Admission& a) { a.token_ids.clear(); }));
  EXPECT_FALSE(admits([](Admission& a) { a.sampling.top_p = 0; }));
  EXPECT_FALSE(admits([](Admission& a) { a.sampling.top_k = -1; }));
  EXPECT_FALSE(admits([](Admission& a) { a.sampling.num_logprobs = kMaxLogprobs + 1; }));
  EXPECT_FALSE(admits([](Admission& a) { a.sampling.num_logprobs = -2; }));
  EXPECT_FALSE(admits([](Admission& a) { a.sampling.num_prompt_logprobs = kMaxLogprobs + 1; }));
  EXPECT_FALSE(admits([](Admission& a) { a.sampling.num_prompt_logprobs = -2; }));
  EXPECT_TRUE(admits([](Admission& a) { a.logit_bias[0].bias = kForbidden; }));
  EXPECT_FALSE(admits([](Admission& a) { a.logit_bias[0].token = -1; }));
  EXPECT_FALSE(admits([](Admission& a) { a.logit_bias[0].token = 6; })) << "an id twice";
  for (const float bad : {nan, infinity, -infinity, 1e31f}) {
    EXPECT_FALSE(admits([bad](Admission& a) { a.logit_bias[1].bias = bad; }));
  }
  const auto biases = [](int count) {
    return [count](Admission& a) {
      a.logit_bias.clear();
      for (int i = 0; i < count; ++i) a.logit_bias.push_back({i, 1});
    };
  };
  EXPECT_TRUE(admits(biases(kMaxLogitBias)));
  EXPECT_FALSE(admits(biases(kMaxLogitBias + 1)));
  for (const float bad : {nan, infinity, -1.0f}) {
    EXPECT_FALSE(admits([bad](Admission& a) { a.sampling.temperature = bad; }));
    EXPECT_FALSE(admits([bad](Admission& a) { a.sampling.repetition_penalty = bad; }));
    EXPECT_FALSE(admits([bad](Admission& a) { a.sampling.min_p = bad; }));
    EXPECT_FALSE(admits([bad](Admission& a) { a.sampling.top_p = bad; }));
  }
  EXPECT_FALSE(admits([nan](Admission& a) { a.sampling.presence_penalty = nan; }));
  EXPECT_FALSE(admits([nan](Admission& a) { a.sampling.frequency_penalty = nan; }));
}

TEST(Limits, ConfigsOutsideTheLimitsAreRefused) {
  const auto accepts = [](std::function<void(EngineConfig&)> change) {
    EngineConfig config;
    change(config);
    EngineConfig read;
    return decode(encode(config), &read);
  };
  EXPECT_TRUE(accepts([](EngineConfig&) {}));
  EXPECT_FALSE(accepts([](EngineConfig& c) { c.tp = 0; }));
  EXPECT_FALSE(accepts([](EngineConfig& c) { c.pp = -1; }));
  EXPECT_FALSE(accepts([](EngineConfig& c) { c.tp = c.pp = 1 << 30; }));
  EXPECT_FALSE(accepts([](EngineConfig& c) { c.block_size = 24; }));
  EXPECT_FALSE(accepts([](EngineConfig& c) { c.block_size = 128; }));
  EXPECT_FALSE(accepts([](EngineConfig& c) { c.kv_cache_bytes = -1; }));
  EXPECT_FALSE(accepts([](EngineConfig& c) { c.max_num_seqs = 65536; }));
  EXPECT_FALSE(accepts([](EngineConfig& c) { c.max_num_batched_tokens = kMaxRowTokens + 1; }));
  EXPECT_FALSE(accepts([](EngineConfig& c) { c.max_model_len = -1; }));
  EXPECT_FALSE(accepts([](EngineConfig& c) { c.threads = -1; }));
  EXPECT_FALSE(accepts([](EngineConfig& c) { c.timeout_s = 0; }));
  EXPECT_FALSE(accepts([](EngineConfig& c) { c.device = static_cast<DeviceKind>(3); }));
  EXPECT_FALSE(accepts([](EngineConfig& c) { c.dtype = static_cast<ActivationType>(4); }));
  EXPECT_FALSE(accepts([](EngineConfig& c) { c.bench = static_cast<BenchKind>(3); }));
  EXPECT_FALSE(accepts([](EngineConfig& c) { c.model_path = std::string(5000, 'a'); }));
}

TEST(Limits, TimesOfAStepThatRunBackwardsAreRefused) {
  const StepTrace good{.last_end = 1, .begin = 2, .ready = 2, .forward = 5, .end = 6};
  StepTrace read;
  EXPECT_TRUE(decode(encode(good), &read));
  for (int64_t StepTrace::*member : {&StepTrace::begin, &StepTrace::ready, &StepTrace::forward}) {
    StepTrace bad = good;
    bad.*member = 7;
    EXPECT_FALSE(decode(encode(bad), &read));
  }
}

TEST(Limits, FiguresAreNumbers) {
  Ready ready;
  ready.figures = {{"qkv", 1e-6, 1, 1}};
  Ready read;
  EXPECT_TRUE(decode(encode(ready), &read));
  ready.figures[0].seconds = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(decode(encode(ready), &read));
}

TEST(Limits, FrameHeaders) {
  const Bytes body = {1, 2, 3};
  const Bytes frame = make_frame(FrameType::kResult, 7, body);
  ASSERT_EQ(frame.size(), kFrameHeaderBytes + 3);
  FrameHeader header;
  ASSERT_TRUE(decode(frame, &header));
  EXPECT_EQ(header.type, FrameType::kResult);
  EXPECT_EQ(header.epoch, 7u);
  EXPECT_EQ(header.length, 3u);
  for (size_t size = 0; size < kFrameHeaderBytes; ++size) {
    EXPECT_FALSE(decode(std::span<const uint8_t>(frame).first(size), &header));
  }
  const auto refuses = [&](size_t at, uint8_t value) {
    Bytes bad = frame;
    bad[at] = value;
    FrameHeader unread;
    return !decode(bad, &unread);
  };
  EXPECT_TRUE(refuses(0, kProtocolVersion + 1));
  EXPECT_TRUE(refuses(2, 0));
  EXPECT_TRUE(refuses(2, 11));
  EXPECT_TRUE(refuses(3, 1));
  EXPECT_TRUE(refuses(11, 4)) << "64 MiB and three bytes";
}

}  // namespace
}  // namespace millrace
