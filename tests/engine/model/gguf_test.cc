// The GGUF reader: what it reads, and what it refuses before taking memory for it.
#include "engine/model/gguf.h"

#include "engine/model/checkpoint.h"
#include "tests/engine/model/files.h"
#include "tests/engine/model/gguf_builder.h"

namespace millrace {
namespace {

class Gguf : public testing::Test {
 protected:
  GgufFile read(const std::string& bytes) {
    write_file(path_, bytes);
    return read_gguf(path_);
  }
  GgufFile read(GgufBuilder builder) { return read(builder.build()); }
  std::shared_ptr<const Checkpoint> open(GgufBuilder builder) {
    write_file(path_, builder.build());
    return open_checkpoint(path_);
  }
  TempDir dir_;
  std::string path_ = dir_ / "m.gguf";
};

TEST_F(Gguf, ReadsValuesAndPlaces) {
  GgufBuilder builder;
  builder.u32("a.count", 7).f32("a.scale", 0.5f).boolean("a.flag", true).text("a.name", "x y");
  builder.texts("a.list", {"p", "", "qr"}).i32s("a.types", {1, -2});
  builder.tensor("t", {64, 3}, 8, 3 * 68).tensor("u", {5}, 30, 10);
  const std::string bytes = builder.build();
  const GgufFile gguf = read(bytes);
  const JsonFields metadata = gguf.fields();
  EXPECT_EQ(metadata.integer("a.count", 0, 10), 7);
  EXPECT_EQ(gguf.fields("a.").integer("count", 0, 10), 7);
  EXPECT_EQ(metadata.number("a.scale", 0, 1), 0.5);
  EXPECT_EQ(metadata.boolean("a.flag"), true);
  EXPECT_EQ(metadata.text("a.name"), "x y");
  EXPECT_EQ(metadata.texts("a.list"), (std::vector<std::string_view>{"p", "", "qr"}));
  EXPECT_EQ(metadata.numbers("a.types"), (std::vector<double>{1, -2}));
  EXPECT_EQ(metadata.integer("absent", 0, 1), std::nullopt);
  EXPECT_EQ(metadata.texts("absent"), std::nullopt);
  expect_model_error([&] { metadata.integer("a.count", 0, 6); }, "'a.count'");
  expect_model_error([&] { metadata.text("a.count"); }, "not a string");
  expect_model_error([&] { metadata.boolean("a.count"); }, "not true or false");

  const StoredTensor& t = gguf.tensors.at("t");
  EXPECT_EQ(t.info.dtype, DType::kQ8_0);
  EXPECT_EQ(t.info.shape, (std::vector<int64_t>{3, 64}));  // reversed
  EXPECT_EQ(t.offset % 32, 0u);
  const StoredTensor& u = gguf.tensors.at("u");
  EXPECT_EQ(u.info.dtype, DType::kBF16);
  EXPECT_EQ(u.offset, t.offset + 224);
  EXPECT_EQ(u.offset + 32, bytes.size());
}

TEST_F(Gguf, KnowsTheBlocksOfEachType) {
  struct Row {
    uint32_t number;
    DType dtype;
    uint64_t bytes;  // of 256 elements
  };
  for (const Row& row : std::vector<Row>{{0, DType::kF32, 1024}, {1, DType::kF16, 512},
           {30, DType::kBF16, 512}, {2, DType::kQ4_0, 144}, {3, DType::kQ4_1, 160},
           {6, DType::kQ5_0, 176}, {7, DType::kQ5_1, 192}, {8, DType::kQ8_0, 272},
           {10, DType::kQ2K, 84}, {11, DType::kQ3K, 110}, {12, DType::kQ4K, 144},
           {13, DType::kQ5K, 176}, {14, DType::kQ6K, 210}, {20, DType::kIq4Nl, 144}}) {
    const GgufFile gguf = read(GgufBuilder().tensor("t", {256}, row.number, row.bytes));
    const StoredTensor& t = gguf.tensors.at("t");
    EXPECT_TRUE(t.readable) << row.number;
    EXPECT_EQ(t.info.dtype, row.dtype) << row.number;
    EXPECT_EQ(t.bytes, row.bytes) << row.number;
  }
}

// The refusals of split models are in tests/blackbox/broken_gguf.py.
TEST_F(Gguf, ReadsSplitModels) {
  const auto part = [](uint32_t no) {
    GgufBuilder builder;
    return builder.u32("split.no", no).u32("split.count", 3).u32("split.tensors.count", 3);
  };
  const std::string first = dir_ / "s-00001-of-00003.gguf";
  const std::string second = part(1).tensor("b", {8}, 0, 32).tensor("c", {4}, 0, 16).build();
  write_file(first, part(0).text("general.name", "x").tensor("a", {4}, 0, 16).build());
  write_file(dir_ / "s-00002-of-00003.gguf", second);
  write_file(dir_ / "s-00003-of-00003.gguf", part(2).build());
  const GgufFile gguf = read_gguf(first);
  ASSERT_EQ(gguf.files.size(), 3u);
  EXPECT_EQ(gguf.fields().text("general.name"), "x");
  EXPECT_EQ(gguf.tensors.at("a").file, 0u);
  EXPECT_EQ(gguf.tensors.at("c").file, 1u);
  EXPECT_EQ(gguf.tensors.at("c").offset + 32, second.size());
}

TEST_F(Gguf, RefusesBrokenFiles) {
  const auto refused = [&](GgufBuilder builder, const char* message) {
    expect_model_error([&] { read(builder); }, message);
  };
  const auto with = [](auto member, auto value) {
    GgufBuilder builder;
    builder.*member = value;
    return builder;
  };
  const auto value = [](uint32_t type, std::initializer_list<uint64_t> words) {
    ByteWriter bytes;
    bytes.put(uint32_t{8});  // the element type of an array
    for (const uint64_t word : words) bytes.put(word);
    Bytes raw = bytes.take();
    if (type != 9) raw.erase(raw.begin(), raw.begin() + 4);
    return GgufBuilder().raw("k", type, raw);
  };
  expect_model_error([&] { read(std::string("GG")); }, "too early");
  refused(with(&GgufBuilder::magic, 0x46474747u), "does not begin with 'GGUF'");
  refused(with(&GgufBuilder::version, 1u), "version 1");
  refused(with(&GgufBuilder::version, 4u), "version 4");
  refused(with(&GgufBuilder::version, 0x03000000u), "big-endian");
  refused(with(&GgufBuilder::count_error, int64_t{1}), "before its 1 tensors");
  refused(with(&GgufBuilder::count_error, int64_t{999'999}), "before its 999999 tensors");
  refused(with(&GgufBuilder::count_error, int64_t{2'000'000}), "more than the 1000000");
  refused(with(&GgufBuilder::count_error, int64_t{-1}), "more than the 1000000");
  refused(value(8, {1000}), "before its 1000 bytes of a string");
  refused(value(8, {UINT64_MAX}), "bytes of a string");
  refused(value(9, {1 << 20}), "before its 1048576 elements");
  refused(value(9, {UINT64_MAX}), "elements of an array");
  refused(value(13, {0}), "unknown type 13");
  refused(GgufBuilder().raw("k", 9, {9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}), "an array itself");
  refused(GgufBuilder().u32("k", 1).u32("k", 1), "'k' is given twice");
  refused(GgufBuilder().u32("", 1), "not printable");
  refused(GgufBuilder().u32("a\nb", 1), "not printable");
  refused(GgufBuilder().u32("general.alignment", 48), "power of two");
  refused(GgufBuilder().u32("general.alignment", 0), "'general.alignment'");
  refused(GgufBuilder().tensor("t", {4}, 0, 16).tensor("t", {4}, 0, 16), "listed twice");
  refused(GgufBuilder().tensor("t", {}, 0, 16), "0 dimensions");
  refused(GgufBuilder().tensor("t", {1, 1, 1, 1, 1}, 0, 16), "5 dimensions");
  refused(GgufBuilder().tensor("t", {0, 4}, 0, 16), "no valid size");
  refused(GgufBuilder().tensor("t", {UINT64_MAX}, 0, 16), "too large");
  refused(GgufBuilder().tensor("t", {1ull << 32, 1ull << 32}, 0, 16), "no valid size");
  refused(GgufBuilder().tensor("t", {1ull << 61}, 0, 16), "torn");
  refused(GgufBuilder().tensor("t", {33}, 2, 64), "whole q4_0 blocks");
  refused(GgufBuilder().tensor("t", {4}, 0, 16, 8), "not aligned");
  refused(GgufBuilder().tensor("t", {4}, 0, 16, 1ll << 62), "torn");
  refused(GgufBuilder().tensor("t", {9}, 0, 32), "torn");
  refused(GgufBuilder().tensor("t", {16}, 0, 64).tensor("u", {16}, 0, 64, 32), "overlap");
}

TEST_F(Gguf, TruncatedAtEveryHeaderByte) {
  GgufBuilder builder = small_llama();
  const std::string whole = builder.build();
  EXPECT_EQ(read(whole).tensors.size(), 11u);
  for (size_t size = 0; size <= builder.header_bytes(); ++size) {
    model_error([&] { read(whole.substr(0, size)); });
  }
  expect_model_error([&] { read(whole.substr(0, whole.size() - 1)); }, "torn");
}

TEST_F(Gguf, SmallLlamaOpens) {
  const auto checkpoint = open(small_llama());
  const ModelConfig& config = checkpoint->config();
  EXPECT_EQ(config.family, "llama");
  EXPECT_EQ(config.vocab_size, 4);
  EXPECT_EQ(config.num_kv_heads, 1);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_TRUE(config.tie_embeddings);
  EXPECT_TRUE(config.rope.interleaved);
  EXPECT_EQ(config.eos_token_ids, (std::vector<int32_t>{0}));
  EXPECT_EQ(checkpoint->eos_token(), "<s>");
  EXPECT_EQ(checkpoint->bos_token(), "");
  EXPECT_EQ(checkpoint->name(), "m");
}

TEST_F(Gguf, WindowsOfAFamilyActWhereTheFileHasThem) {
  const auto window = [&](GgufBuilder builder) { return open(builder)->config().layers[0].window; };
  const auto qwen3 = [] {
    return small_llama("ab", 1, "qwen3", 32'768)
        .tensor("blk.0.attn_q_norm.weight", {16}, 0, 64)
        .tensor("blk.0.attn_k_norm.weight", {16}, 0, 64);
  };
  EXPECT_EQ(window(qwen3()), 0);
  expect_model_error(
      [&] { window(qwen3().u32("qwen3.attention.sliding_window", 8)); }, "sliding_window'");
  const auto gemma2 = [] {
    return small_llama("ab", 1, "gemma2", 32'768)
        .tensor("blk.0.post_attention_norm.weight", {32}, 0, 128)
        .tensor("blk.0.post_ffw_norm.weight", {32}, 0, 128);
  };
  EXPECT_EQ(window(gemma2()), 4096);
  EXPECT_EQ(window(gemma2().u32("gemma2.attention.sliding_window", 8)), 8);
  EXPECT_EQ(window(gemma2().u32("gemma2.attention.sliding_window", 32'768)), 0);
}

TEST_F(Gguf, RefusesModelsWeWouldGetWrong) {
  const auto refused = [&](GgufBuilder builder, const char* message) {
    expect_model_error([&] { open(builder); }, message);
  };
  refused(GgufBuilder().text("general.architecture", "bert"), "supported are: llama");
  refused(GgufBuilder(), "architecture '' is not supported");
  refused(small_llama().u32("split.count", 2), "does not end in -00001-of-00002.gguf");
  refused(small_llama().u32("llama.expert_count", 8), "'llama.expert_count'");
  refused(small_llama().u32("llama.rope.dimension_count", 8), "'llama.rope.dimension_count'");
  refused(small_llama().u32("llama.vocab_size", 5), "'llama.vocab_size'");
  refused(small_llama().text("llama.rope.scaling.type", "longrope"), "'longrope'");
  refused(small_llama().f32("llama.logit_scale", 2), "'llama.logit_scale'");
  refused(small_llama().tensor("blk.0.attn_q_norm.weight", {16}, 0, 64), "does not use");
  refused(small_llama().tensor("blk.0.attn_sinks.weight", {2}, 0, 8), "0.attn_sinks.weight'");
  refused(small_llama().u32("llama.attention.sliding_window", 8), "sliding_window'");
  refused(small_llama().f32("llama.attn_logit_softcapping", 50), "'llama.attn_logit_softcapping'");
  refused(small_llama().f32("llama.final_logit_softcapping", 30), "final_logit_softcapping'");
  refused(small_llama().tensor("rope_factors_long.weight", {8}, 0, 32), "only one of");
  refused(small_llama().u32("tokenizer.ggml.bos_token_id", 4), "bos_token_id");
  refused(small_llama().tensor("blk.0.attn_q.bias", {32}, 0, 128), "self_attn.k_proj.bias");
  refused(small_llama().tensor("output.weight", {32, 5}, 0, 640), "[5, 32]");
  refused(small_llama().tensor("output.weight", {32, 4}, 12, 128), "whole q4_k blocks");
  refused(small_llama().tensor("output.weight", {32, 4}, 16, 128), "IQ2_XXS (GGUF type 16)");
  refused(small_llama().tensor("output.weight", {32, 4}, 77, 128), "GGUF type 77");
  refused(small_llama().tensor("rope_freqs.weight", {4}, 0, 32), "'rope_freqs.weight'");
}

TEST_F(Gguf, ScalingKeys) {
  EXPECT_EQ(open(small_llama())->config().rope.kind, RopeKind::kDefault);
  const auto linear = open(small_llama().f32("llama.rope.scaling.factor", 4));
  EXPECT_EQ(linear->config().rope.kind, RopeKind::kLinear);
  EXPECT_EQ(linear->config().rope.factor, 4);
  const auto yarn = open(small_llama()
                             .text("llama.rope.scaling.type", "yarn")
                             .f32("llama.rope.scaling.factor", 4)
                             .u32("llama.rope.scaling.original_context_length", 16));
  EXPECT_EQ(yarn->config().rope.kind, RopeKind::kYarn);
  EXPECT_EQ(yarn->config().rope.original_max_position, 16);
  EXPECT_NEAR(yarn->config().rope.attention_factor, 1.1386294, 1e-6);
}

TEST_F(Gguf, OlderFilesNameTheEndOfATurnOnlyAsAToken) {
  EXPECT_EQ(
      open(small_llama("<|im_end|>", 3))->config().eos_token_ids, (std::vector<int32_t>{0, 3}));
  EXPECT_EQ(open(small_llama("<|im_end|>", 1))->config().eos_token_ids, (std::vector<int32_t>{0}));
  const auto newer = open(small_llama().u32("tokenizer.ggml.eot_token_id", 3));
  EXPECT_EQ(newer->config().eos_token_ids, (std::vector<int32_t>{0, 3}));
}

}  // namespace
}  // namespace millrace
