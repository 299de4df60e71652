// Whole checkpoints: every slice equals the same part of the whole, and the real model opens.
#include "engine/model/checkpoint.h"

#include <cstdlib>
#include <filesystem>

#include "engine/model/families.h"
#include "tests/engine/model/files.h"

namespace millrace {
namespace {

std::vector<uint8_t> read(
    const Checkpoint& checkpoint, const std::string& name, Range rows, Range cols) {
  const TensorInfo* info = checkpoint.find(name);
  const int64_t width = info->shape.size() > 1 ? cols.size : 1;
  std::vector<uint8_t> bytes(static_cast<size_t>(dtype_bytes(info->dtype, rows.size * width)));
  checkpoint.read(name, rows, cols, bytes.data());
  return bytes;
}

// Cuts every tensor into uneven parts and puts them together again from the whole.
void expect_slices_equal_whole(const Checkpoint& checkpoint) {
  for (const ExpectedTensor& expected : expected_tensors(checkpoint.config())) {
    SCOPED_TRACE(expected.name);
    const TensorInfo* info = checkpoint.find(expected.name);
    ASSERT_NE(info, nullptr);
    ASSERT_EQ(info->shape, expected.shape);
    const int64_t rows = info->shape[0];
    const bool is_vector = info->shape.size() == 1;
    const int64_t cols = is_vector ? 1 : info->shape[1];
    const auto whole = read(checkpoint, expected.name, {0, rows}, {0, cols});
    const Range some_rows{rows / 3, rows / 2};
    if (is_vector) {
      const auto part = read(checkpoint, expected.name, some_rows, {0, 1});
      const int64_t size = dtype_info(info->dtype).block_bytes;
      EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + some_rows.begin * size));
      continue;
    }
    const Range some_cols{32, cols - 32};
    ASSERT_TRUE(readable_as_stored(*info, some_cols));
    const auto part = read(checkpoint, expected.name, some_rows, some_cols);
    const int64_t line = dtype_bytes(info->dtype, cols);
    const int64_t skip = dtype_bytes(info->dtype, some_cols.begin);
    const int64_t size = dtype_bytes(info->dtype, some_cols.size);
    for (int64_t r = 0; r < some_rows.size; ++r) {
      const auto at = whole.begin() + (some_rows.begin + r) * line + skip;
      ASSERT_TRUE(std::equal(at, at + size, part.begin() + r * size)) << "row " << r;
    }
  }
}

TEST(Checkpoint, SlicesEqualTheWhole) {
  expect_slices_equal_whole(*open_checkpoint("tests/data/tiny-llama"));
  expect_slices_equal_whole(*open_checkpoint("tests/data/tiny-llama.gguf"));
}

TEST(Checkpoint, TypesAreKeptAsStored) {
  const auto folder = open_checkpoint("tests/data/tiny-llama");
  EXPECT_EQ(folder->find("model.layers.0.mlp.up_proj.weight")->dtype, DType::kF32);
  EXPECT_EQ(folder->find("model.layers.1.mlp.up_proj.weight")->dtype, DType::kF16);
  const auto gguf = open_checkpoint("tests/data/tiny-llama.gguf");
  const std::string layer = "model.layers.1.";
  EXPECT_EQ(gguf->find(layer + "self_attn.q_proj.weight")->dtype, DType::kQ4_1);
  EXPECT_EQ(gguf->find(layer + "self_attn.k_proj.weight")->dtype, DType::kQ8_0);
  EXPECT_EQ(gguf->find(layer + "self_attn.v_proj.weight")->dtype, DType::kF16);
  EXPECT_EQ(gguf->find(layer + "self_attn.o_proj.weight")->dtype, DType::kBF16);
  EXPECT_EQ(gguf->find(layer + "mlp.down_proj.weight")->dtype, DType::kQ4_0);
  EXPECT_EQ(gguf->find("model.norm.weight")->dtype, DType::kF32);
  EXPECT_EQ(gguf->find("lm_head.weight"), nullptr);
}

TEST(Checkpoint, BlocksAreNotSplit) {
  const TensorInfo quantized{DType::kQ4_0, {64, 96}};
  EXPECT_TRUE(readable_as_stored(quantized, {0, 96}));
  EXPECT_TRUE(readable_as_stored(quantized, {32, 64}));
  EXPECT_FALSE(readable_as_stored(quantized, {16, 32}));
  EXPECT_FALSE(readable_as_stored(quantized, {32, 48}));
  EXPECT_TRUE(readable_as_stored({DType::kF16, {64, 96}}, {1, 3}));
}

TEST(Checkpoint, GgufScalingEqualsTheFolders) {
  // The file holds llama3 scaling as divisors, the folder as its four numbers.
  const auto folder = open_checkpoint("tests/data/tiny-llama-tied");
  const auto gguf = open_checkpoint("tests/data/tiny-llama.gguf");
  ASSERT_EQ(gguf->config().rope.freq_factors.size(), 8u);
  std::vector<float> a(256 * 16), b(256 * 16);
  fill_rope_table(folder->config().rope, 256, a.data());
  fill_rope_table(gguf->config().rope, 256, b.data());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-4) << i;
}

TEST(Checkpoint, RealModel) {
  const char* path = std::getenv("MILLRACE_TEST_MODEL");
  const std::string model = path != nullptr ? path : "models/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!std::filesystem::exists(model)) GTEST_SKIP() << model << " is not here";
  const auto checkpoint = open_checkpoint(model);
  const ModelConfig& config = checkpoint->config();
  EXPECT_EQ(checkpoint->name(), "SmolLM2-135M-Instruct.Q4_1");
  EXPECT_EQ(config.num_layers, 30);
  EXPECT_EQ(config.hidden_size, 576);
  EXPECT_EQ(config.intermediate_size, 1536);
  EXPECT_EQ(config.num_heads, 9);
  EXPECT_EQ(config.num_kv_heads, 3);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.vocab_size, 49152);
  EXPECT_EQ(config.max_position, 8192);
  EXPECT_FLOAT_EQ(config.rms_norm_eps, 1e-5f);
  EXPECT_EQ(config.rope.theta, 100000.0);
  EXPECT_TRUE(config.rope.interleaved);
  EXPECT_TRUE(config.tie_embeddings);
  EXPECT_EQ(config.bos_token_id, 1);
  EXPECT_EQ(config.eos_token_ids, (std::vector<int32_t>{2}));
  EXPECT_EQ(checkpoint->bos_token(), "<|im_start|>");
  EXPECT_EQ(checkpoint->eos_token(), "<|im_end|>");
  EXPECT_NE(checkpoint->chat_template().find("add_generation_prompt"), std::string::npos);
  EXPECT_EQ(checkpoint->find("model.embed_tokens.weight")->dtype, DType::kQ8_0);
  expect_slices_equal_whole(*checkpoint);
}

}  // namespace
}  // namespace millrace
