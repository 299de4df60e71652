// Logits of whole models against what transformers computed (tests/data/goldens, made by
// scripts/make_goldens.py): alone, tensor-parallel and cut into stages.
#include <gtest/gtest.h>

#include <numeric>
#include <thread>

#include "engine/base/thread_pool.h"
#include "engine/model/cost.h"
#include "engine/model/decoder.h"
#include "engine/model/families.h"
#include "engine/worker/kv_cache.h"
#include "tests/comm/thread_comm.h"
#include "tests/engine/worker/golden.h"

namespace millrace {
namespace {

// One rank of one stage, on a thread of its own.
class StageRank {
 public:
  StageRank(const Checkpoint& model, const Stage& stage, std::unique_ptr<DeviceComm> comm)
      : device_(make_cpu_device()),
        pool_(1),
        ops_(make_cpu_ops(pool_)),
        comm_(std::move(comm)),
        tp_(*comm_),
        decoder_(model, stage, {128, 128, 256}, *ops_, tp_, *device_, [] {}),
        cache_(*device_, decoder_.num_layers(), decoder_.attention_shape(), 16, 16),
        stage_(stage) {
    std::iota(table_.begin(), table_.end(), 0u);
  }

  // Runs all positions of `ids` in one step; logits of each where the stage has the head.
  std::vector<float> run(const std::vector<int32_t>& ids, const TensorView& hidden) {
    const auto count = static_cast<int32_t>(ids.size());
    const std::vector<int32_t> cu_tokens = {0, count};
    std::vector<int32_t> positions(ids.size());
    std::iota(positions.begin(), positions.end(), 0);
    const uint32_t* tables[] = {table_.data()};
    const BatchView batch{count, 16, cu_tokens, positions, tables};
    if (stage_.has_embedding) decoder_.embed(ids, hidden);
    std::atomic<uint64_t> progress{0};
    decoder_.forward(hidden, batch, cache_.views(), progress);
    EXPECT_EQ(progress.load(), static_cast<uint64_t>(stage_.num_layers));
    if (!stage_.has_head) return {};
    decoder_.compute_logits(hidden, positions);
    const TensorView logits = decoder_.gather_logits(count);
    return {logits.as<float>(), logits.as<float>() + logits.count()};
  }

 private:
  std::unique_ptr<Device> device_;
  ThreadPool pool_;
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<DeviceComm> comm_;
  TpOps tp_;
  Decoder decoder_;
  KvCache cache_;
  Stage stage_;
  std::array<uint32_t, 16> table_;
};

// What every tensor-parallel rank of the last stage says.
std::vector<std::vector<float>> logits_of(
    const Checkpoint& model, int tp, int pp, const std::vector<int32_t>& ids) {
  EngineConfig config;
  config.pp = pp;
  const std::vector<Stage> stages = cut_stages(model.config(), config);
  ThreadGroup group(tp);
  std::vector<std::vector<float>> logits(static_cast<size_t>(tp));
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < tp; ++rank) {
    ranks.emplace_back([&, rank] {
      const auto device = make_cpu_device();
      const Tensor hidden = device->tensor(
          DType::kF32, {static_cast<int64_t>(ids.size()), model.config().hidden_size}, "hidden");
      for (const Stage& stage : stages) {
        StageRank part(model, stage, tp == 1 ? std::make_unique<DeviceComm>() : group.comm(rank));
        logits[static_cast<size_t>(rank)] = part.run(ids, hidden.view);
      }
    });
  }
  for (auto& rank : ranks) rank.join();
  return logits;
}

struct Case {
  const char* checkpoint;
  const char* golden;
  int tp, pp;
  friend void PrintTo(const Case& c, std::ostream* out) { *out << c.checkpoint; }
};

class Golden1e4 : public ::testing::TestWithParam<Case> {};

TEST_P(Golden1e4, LogitsAreThoseOfTransformers) {
  const Case& c = GetParam();
  const auto model = open_checkpoint(std::string("tests/data/") + c.checkpoint);
  // Quantized weights multiply activations of 16 bits (engine/kernels/README.md).
  const bool quantized = std::ranges::any_of(expected_tensors(model->config()),
      [&](const ExpectedTensor& t) { return is_quantized(model->find(t.name)->dtype); });
  const float tolerance = quantized ? 5e-4f : 1e-4f;
  for (const Golden& golden : read_goldens(c.golden)) {
    const auto all = logits_of(*model, c.tp, c.pp, golden.ids);
    for (const auto& logits : all) {
      ASSERT_EQ(logits.size(), golden.logits.size());
      for (size_t i = 0; i < logits.size(); ++i) {
        ASSERT_NEAR(logits[i], golden.logits[i], tolerance) << "logit " << i;
      }
      EXPECT_EQ(logits, all[0]) << "ranks of one stage must agree to the bit";
    }
    // The greedy ids: each is the largest logit after those before it.
    std::vector<int32_t> ids = golden.ids;
    ids.insert(ids.end(), golden.greedy.begin(), golden.greedy.end());
    const std::vector<float> longer = logits_of(*model, c.tp, c.pp, ids)[0];
    const auto vocab = static_cast<ptrdiff_t>(model->config().vocab_size);
    for (size_t i = 0; i < golden.greedy.size(); ++i) {
      const auto row = longer.begin() + static_cast<ptrdiff_t>(golden.ids.size() + i - 1) * vocab;
      EXPECT_EQ(std::max_element(row, row + vocab) - row, golden.greedy[i]) << "token " << i;
    }
  }
}

std::vector<Case> cases() {
  std::vector<Case> made;
  for (const auto& [checkpoint, golden] :
      {std::pair{"tiny-llama", "tiny-llama"}, std::pair{"tiny-llama-tied", "tiny-llama-tied"},
          std::pair{"tiny-llama.gguf", "tiny-llama-gguf"},
          std::pair{"tiny-mistral", "tiny-mistral"}, std::pair{"tiny-qwen2", "tiny-qwen2"},
          std::pair{"tiny-qwen2.gguf", "tiny-qwen2-gguf"}, std::pair{"tiny-qwen3", "tiny-qwen3"},
          std::pair{"tiny-qwen3.gguf", "tiny-qwen3"}, std::pair{"tiny-phi3", "tiny-phi3"},
          std::pair{"tiny-phi3.gguf", "tiny-phi3"}, std::pair{"tiny-gemma2", "tiny-gemma2"},
          std::pair{"tiny-gemma2.gguf", "tiny-gemma2"}, std::pair{"tiny-gemma3", "tiny-gemma3"},
          std::pair{"tiny-gemma3.gguf", "tiny-gemma3-gguf"},
          std::pair{"tiny-smollm3", "tiny-smollm3"}, std::pair{"tiny-smollm3.gguf", "tiny-smollm3"},
          std::pair{"tiny-olmo2", "tiny-olmo2"}, std::pair{"tiny-olmo2.gguf", "tiny-olmo2"}}) {
    for (const auto& [tp, pp] : {std::pair{1, 1}, {2, 1}, {3, 1}, {1, 2}, {2, 2}}) {
      made.push_back({checkpoint, golden, tp, pp});
    }
  }
  return made;
}

INSTANTIATE_TEST_SUITE_P(Models, Golden1e4, ::testing::ValuesIn(cases()), [](const auto& info) {
  std::string name = info.param.checkpoint;
  std::ranges::replace_if(
      name, [](char c) { return c == '-' || c == '.'; }, '_');
  return name + "_tp" + std::to_string(info.param.tp) + "_pp" + std::to_string(info.param.pp);
});

}  // namespace
}  // namespace millrace
