// Codecs: round trips, the size of a steady step, truncations and random mutations.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>

#include "engine/protocol/messages.h"
#include "engine/protocol/step.h"
#include "engine/protocol/trace.h"

namespace millrace {
namespace {

using Random = std::mt19937_64;

int below(Random& random, int limit) {
  return static_cast<int>(random() % static_cast<uint64_t>(limit));
}

SamplingParams random_sampling(Random& random) {
  SamplingParams params;
  params.temperature = static_cast<float>(below(random, 200)) / 100;
  params.top_p = static_cast<float>(1 + below(random, 100)) / 100;
  params.min_p = static_cast<float>(below(random, 101)) / 100;
  params.top_k = below(random, 100);
  params.repetition_penalty = 0.5f + static_cast<float>(below(random, 100)) / 100;
  params.presence_penalty = static_cast<float>(below(random, 400) - 200) / 100;
  params.frequency_penalty = static_cast<float>(below(random, 400) - 200) / 100;
  params.seed = random();
  params.num_logprobs = below(random, kMaxLogprobs + 2) - 1;
  params.num_prompt_logprobs = below(random, kMaxLogprobs + 2) - 1;
  params.only_listed = below(random, 2) == 0;
  return params;
}

StepPlan random_plan(Random& random) {
  StepPlan plan;
  plan.sequence = random();
  plan.slot_hash = random();
  for (int i = below(random, 4); i > 0; --i) plan.releases.push_back(uint16_t(random()));
  for (int i = below(random, 4); i > 0; --i) {
    Admission admission;
    admission.slot = static_cast<uint16_t>(random());
    admission.token_ids.resize(static_cast<size_t>(1 + below(random, 40)));
    for (int32_t& id : admission.token_ids) id = below(random, 1 << 30);
    const int num_ids = static_cast<int>(admission.token_ids.size());
    admission.num_computed = static_cast<uint32_t>(below(random, num_ids));
    admission.num_prompt = static_cast<uint32_t>(1 + below(random, num_ids));
    admission.sampling = random_sampling(random);
    for (int b = below(random, 5); b > 0; --b) {
      admission.logit_bias.push_back({1000 - 100 * b + below(random, 99), 0.5f});
    }
    plan.admissions.push_back(admission);
  }
  for (int i = below(random, 20); i > 0; --i) {
    Row row;
    row.slot = static_cast<uint16_t>(random());
    row.count = static_cast<uint16_t>(1 + below(random, kMaxRowTokens));
    row.output = static_cast<Output>(below(random, 4));
    for (int b = below(random, 4) - 1; b > 0; --b) row.new_blocks.push_back(uint32_t(random()));
    plan.rows.push_back(row);
  }
  return plan;
}

std::vector<SampledToken> random_tokens(Random& random) {
  std::vector<SampledToken> tokens(static_cast<size_t>(below(random, 3)));
  for (SampledToken& token : tokens) {
    token.token = below(random, 1 << 30);
    token.logprob = -static_cast<float>(below(random, 100)) / 7;
    token.top.resize(static_cast<size_t>(below(random, kMaxLogprobs + 1)));
    for (TokenLogprob& entry : token.top) entry = {below(random, 1 << 30), -0.5f};
  }
  return tokens;
}

StepResult random_result(Random& random) {
  StepResult result;
  result.sequence = random();
  result.stage = static_cast<uint16_t>(random());
  result.compute_us = static_cast<uint32_t>(random());
  result.comm_us = static_cast<uint32_t>(random());
  result.idle_us = static_cast<uint32_t>(random());
  result.wait_us = static_cast<uint32_t>(random());
  for (int i = below(random, 6); i > 0; --i) {
    RowResult row;
    row.slot = static_cast<uint16_t>(random());
    row.status = static_cast<RowStatus>(below(random, 2));
    row.tokens = random_tokens(random);
    row.scored = random_tokens(random);
    result.rows.push_back(row);
  }
  return result;
}

EngineConfig some_config() {
  EngineConfig config;
  config.model_path = "/models/a model/x.gguf";
  config.tp = 4;
  config.pp = 3;
  config.pp_layers = {9, 9, 12};
  config.block_size = 32;
  config.kv_cache_bytes = int64_t{5} << 33;
  config.max_num_seqs = 255;
  config.max_num_batched_tokens = 4096;
  config.max_model_len = 8192;
  config.threads = 3;
  config.timeout_s = 7;
  config.device = DeviceKind::kCuda;
  config.dtype = ActivationType::kBFloat16;
  config.dummy_weights = true;
  config.profile = true;
  config.bench = BenchKind::kComm;
  return config;
}

void expect_equal(const StepPlan& a, const StepPlan& b) {
  EXPECT_EQ(a.sequence, b.sequence);
  EXPECT_EQ(a.slot_hash, b.slot_hash);
  EXPECT_EQ(a.releases, b.releases);
  ASSERT_EQ(a.admissions.size(), b.admissions.size());
  for (size_t i = 0; i < a.admissions.size(); ++i) {
    EXPECT_EQ(a.admissions[i].slot, b.admissions[i].slot);
    EXPECT_EQ(a.admissions[i].num_computed, b.admissions[i].num_computed);
    EXPECT_EQ(a.admissions[i].num_prompt, b.admissions[i].num_prompt);
    EXPECT_EQ(a.admissions[i].sampling, b.admissions[i].sampling);
    EXPECT_EQ(a.admissions[i].token_ids, b.admissions[i].token_ids);
    EXPECT_EQ(a.admissions[i].logit_bias, b.admissions[i].logit_bias);
  }
  ASSERT_EQ(a.rows.size(), b.rows.size());
  for (size_t i = 0; i < a.rows.size(); ++i) {
    EXPECT_EQ(a.rows[i].slot, b.rows[i].slot);
    EXPECT_EQ(a.rows[i].count, b.rows[i].count);
    EXPECT_EQ(a.rows[i].output, b.rows[i].output);
    EXPECT_EQ(a.rows[i].new_blocks, b.rows[i].new_blocks);
  }
}

// All kinds of body, each with its decoder; a decoder that says yes must give a value whose
// encoding is the very bytes it read.
struct Kind {
  const char* name;
  std::function<Bytes(Random&)> make;
  std::function<bool(std::span<const uint8_t>)> accepts;
};

template <typename T>
Kind kind(const char* name, std::function<T(Random&)> make) {
  return {name, [make](Random& random) { return encode(make(random)); },
      [](std::span<const uint8_t> bytes) {
        T value;
        if (!decode(bytes, &value)) return false;
        const Bytes again = encode(value);
        EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), again.begin(), again.end()));
        return true;
      }};
}

std::vector<Kind> all_kinds() {
  return {
      kind<StepPlan>("plan", random_plan),
      kind<StepResult>("result", random_result),
      kind<EngineConfig>("config", [](Random&) { return some_config(); }),
      kind<Ready>("ready",
          [](Random&) {
            return Ready{3, 1, 2, 4, 5, "cpu, layers 0-9", {{"qkv", 1e-6, 4096, 8192}}};
          }),
      kind<Start>("start", [](Random& random) { return Start{1 + uint32_t(random() >> 33)}; }),
      kind<Heartbeat>("heartbeat",
          [](Random& random) {
            return Heartbeat{7, random(), 9};
          }),
      kind<StepTrace>("trace",
          [](Random& random) {
            const auto at = static_cast<int64_t>(random() >> 2);
            return StepTrace{random(), 3, 9, at + 2, at + 1, at, at, at + 1, at + 5, at + 5, 4};
          }),
      kind<Failed>("failed",
          [](Random&) {
            return Failed{1, 6, "rank 1 lost its way"};
          }),
  };
}

TEST(Codec, PlansAndResultsComeBackAsTheyWere) {
  Random random(1);
  for (int i = 0; i < 500; ++i) {
    const StepPlan plan = random_plan(random);
    StepPlan plan_read;
    ASSERT_TRUE(decode(encode(plan), &plan_read));
    expect_equal(plan, plan_read);

    const StepResult result = random_result(random);
    StepResult result_read;
    ASSERT_TRUE(decode(encode(result), &result_read));
    EXPECT_EQ(result.sequence, result_read.sequence);
    EXPECT_EQ(result.stage, result_read.stage);
    EXPECT_EQ(result.idle_us, result_read.idle_us);
    EXPECT_EQ(result.wait_us, result_read.wait_us);
    ASSERT_EQ(result.rows.size(), result_read.rows.size());
    for (size_t r = 0; r < result.rows.size(); ++r) {
      EXPECT_EQ(result.rows[r].slot, result_read.rows[r].slot);
      EXPECT_EQ(result.rows[r].status, result_read.rows[r].status);
      for (const auto tokens : {&RowResult::tokens, &RowResult::scored}) {
        EXPECT_TRUE(std::ranges::equal(result.rows[r].*tokens, result_read.rows[r].*tokens,
            [](const SampledToken& a, const SampledToken& b) {
              return a.token == b.token && a.logprob == b.logprob && a.top.size() == b.top.size();
            }));
      }
    }
  }
}

TEST(Codec, ConfigAndMessagesComeBackAsTheyWere) {
  EngineConfig config;
  ASSERT_TRUE(decode(encode(some_config()), &config));
  EXPECT_EQ(config.model_path, "/models/a model/x.gguf");
  EXPECT_EQ(config.tp * config.pp, 12);
  EXPECT_EQ(config.pp_layers, (std::vector<int32_t>{9, 9, 12}));
  EXPECT_EQ(config.block_size, 32);
  EXPECT_EQ(config.kv_cache_bytes, int64_t{5} << 33);
  EXPECT_EQ(config.max_num_seqs, 255);
  EXPECT_EQ(config.max_num_batched_tokens, 4096);
  EXPECT_EQ(config.max_model_len, 8192);
  EXPECT_EQ(config.threads, 3);
  EXPECT_EQ(config.timeout_s, 7);
  EXPECT_EQ(config.device, DeviceKind::kCuda);
  EXPECT_EQ(config.dtype, ActivationType::kBFloat16);
  EXPECT_TRUE(config.dummy_weights);
  EXPECT_FALSE(config.tune);

  Ready ready;
  ASSERT_TRUE(decode(encode(Ready{3, 100, 200, 400, 500, "cpu"}), &ready));
  EXPECT_EQ(ready.weight_bytes, 100);
  EXPECT_EQ(ready.kv_bytes_per_block, 200);
  EXPECT_EQ(ready.num_blocks, 400u);
  EXPECT_EQ(ready.config_hash, 500u);
  EXPECT_EQ(ready.description, "cpu");

  Failed failed;
  ASSERT_TRUE(decode(encode(Failed{2, 3, std::string(100'000, 'x')}), &failed));
  EXPECT_EQ(failed.rank, 2);
  EXPECT_EQ(failed.message.size(), 65536u) << "a sentence too long is cut, not refused";
}

// 256 sequences at different places in their blocks: over 16 steps each takes one new block.
TEST(Codec, SteadyDecodeOf256RowsFitsTwoKilobytes) {
  for (int step = 0; step < 16; ++step) {
    StepPlan plan;
    plan.sequence = static_cast<uint64_t>(step);
    for (int i = 0; i < 256; ++i) {
      Row row{static_cast<uint16_t>(i), 1, Output::kLast, {}};
      if (i % 16 == step) row.new_blocks = {static_cast<uint32_t>(1000 + i)};
      plan.rows.push_back(row);
    }
    EXPECT_LE(make_frame(FrameType::kPlan, 1, encode(plan)).size(), 2048u);
  }
}

TEST(Codec, EveryTruncationAndEveryTrailingByteIsRefused) {
  Random random(2);
  for (const Kind& kind : all_kinds()) {
    for (int i = 0; i < 20; ++i) {
      Bytes bytes = kind.make(random);
      ASSERT_TRUE(kind.accepts(bytes)) << kind.name;
      for (size_t size = 0; size < bytes.size(); ++size) {
        const Bytes cut(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(size));
        EXPECT_FALSE(kind.accepts(cut)) << kind.name << " cut at " << size;
      }
      bytes.push_back(0);
      EXPECT_FALSE(kind.accepts(bytes)) << kind.name;
    }
  }
}

TEST(Codec, MutatedFramesNeverBreakADecoder) {
  Random random(3);
  const std::vector<Kind> kinds = all_kinds();
  int accepted = 0;
  for (int i = 0; i < 100'000; ++i) {
    const Kind& kind =
        kinds[i % 2 == 0 ? static_cast<size_t>(i / 2 % 2) : static_cast<size_t>(below(random, 7))];
    Bytes bytes = kind.make(random);
    for (int m = 1 + below(random, 4); m > 0 && !bytes.empty(); --m) {
      const auto at = static_cast<size_t>(below(random, static_cast<int>(bytes.size())));
      switch (below(random, 4)) {
        case 0: bytes[at] ^= static_cast<uint8_t>(1 << below(random, 8)); break;
        case 1: bytes[at] = random() % 2 == 0 ? 0xff : static_cast<uint8_t>(random()); break;
        case 2: bytes.erase(bytes.begin() + static_cast<ptrdiff_t>(at)); break;
        default:
          bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(at), static_cast<uint8_t>(random()));
      }
    }
    accepted += kind.accepts(bytes) ? 1 : 0;
  }
  EXPECT_GT(accepted, 1000) << "the mutations should leave some values well-formed";
  EXPECT_LT(accepted, 90'000) << "the decoders should refuse something";
}

}  // namespace
}  // namespace millrace
