// tokenizer.json made from GGUF vocabularies: its shape, what is refused, and that text becomes
// the ids transformers gives (tests/data/goldens, scripts/make_goldens.py).
#include "engine/model/stored_model.h"

#include <boost/json/parse.hpp>
#include <cstdlib>
#include <filesystem>

#include "engine/model/checkpoint.h"
#include "engine/model/gguf.h"
#include "engine/text/text.h"
#include "tests/engine/model/files.h"

namespace millrace {
namespace {

namespace json = boost::json;

// A byte-level vocabulary of five tokens, or what `model` says.
json::object small_vocabulary(const std::string& model = "gpt2", const std::string& pre = "gpt-2") {
  json::object metadata;
  metadata["tokenizer.ggml.model"] = model;
  metadata["tokenizer.ggml.pre"] = pre;
  metadata["tokenizer.ggml.tokens"] = json::array{"<s>", "a", "b", "ab", "<tool>"};
  metadata["tokenizer.ggml.token_type"] = json::array{3, 1, 1, 1, 4};
  metadata["tokenizer.ggml.bos_token_id"] = uint64_t{0};
  return metadata;
}

std::string make(const json::object& metadata, int32_t vocab_size = 8) {
  return make_tokenizer_json(JsonFields(metadata, "'m.gguf'"), vocab_size);
}

json::value made(const json::object& metadata) { return json::parse(make(metadata)); }

TEST(GgufTokenizer, ByteLevelShape) {
  json::object metadata = small_vocabulary("gpt2", "llama-bpe");
  metadata["tokenizer.ggml.merges"] = json::array{"a b"};
  const json::value tokenizer = made(metadata);
  EXPECT_EQ(tokenizer.at("model").at("vocab"),
      json::parse(R"({"<s>": 0, "a": 1, "b": 2, "ab": 3, "<tool>": 4})"));
  EXPECT_EQ(tokenizer.at("model").at("merges"), json::parse(R"([["a", "b"]])"));
  EXPECT_EQ(tokenizer.at("model").at("ignore_merges"), json::value(true));
  const json::array& added = tokenizer.at("added_tokens").as_array();
  ASSERT_EQ(added.size(), 2u);
  EXPECT_EQ(added[0].at("content"), json::value("<s>"));
  EXPECT_EQ(added[0].at("special"), json::value(true));
  EXPECT_EQ(added[1].at("id"), json::value(4));
  EXPECT_EQ(added[1].at("special"), json::value(false));
  // llama-bpe begins texts with BOS unless the file says otherwise.
  EXPECT_EQ(tokenizer.at("post_processor").at("single"),
      json::parse(R"([{"SpecialToken": {"id": "<s>", "type_id": 0}},
                            {"Sequence": {"id": "A", "type_id": 0}}])"));
  metadata["tokenizer.ggml.add_bos_token"] = false;
  EXPECT_TRUE(made(metadata).at("post_processor").is_null());
}

TEST(GgufTokenizer, AddsTheEndWhenAsked) {
  json::object metadata = small_vocabulary();
  metadata["tokenizer.ggml.merges"] = json::array{"a b"};
  metadata["tokenizer.ggml.add_eos_token"] = true;
  expect_model_error([&] { made(metadata); }, "'eos' is to be added but not named");
  metadata["tokenizer.ggml.eos_token_id"] = uint64_t{4};
  const auto tokenizer = Tokenizer::from_json(make(metadata));
  EXPECT_EQ(tokenizer->encode("abb", /*add_special=*/true), (std::vector<int32_t>{3, 2, 4}));
  EXPECT_EQ(tokenizer->encode("ab<tool>a", /*add_special=*/false), (std::vector<int32_t>{3, 4, 1}));
}

// SentencePiece's pieces: 0 <unk>, 1 </s>, 2 "▁", 3 "a", 4 "▁a", 5 "▁▁" (user-defined), 6 a byte.
json::object pieces(const std::string& model) {
  json::object metadata;
  metadata["tokenizer.ggml.model"] = model;
  metadata["tokenizer.ggml.tokens"] =
      json::array{"<unk>", "</s>", "\u2581", "a", "\u2581a", "\u2581\u2581", "<0x62>"};
  metadata["tokenizer.ggml.token_type"] = json::array{2, 3, 1, 1, 1, 4, 6};
  metadata["tokenizer.ggml.scores"] = json::array{0, 0, -3, -2, -1, 0, 0};
  metadata["tokenizer.ggml.eos_token_id"] = uint64_t{1};
  return metadata;
}

TEST(GgufTokenizer, Unigram) {
  json::object metadata = pieces("t5");
  const auto tokenizer = Tokenizer::from_json(make(metadata));
  EXPECT_EQ(tokenizer->encode("a ab", /*add_special=*/true), (std::vector<int32_t>{4, 4, 6, 1}));
  EXPECT_EQ(tokenizer->encode(" aa", /*add_special=*/false), (std::vector<int32_t>{2, 4, 3}));
  metadata["tokenizer.ggml.remove_extra_whitespaces"] = true;
  EXPECT_EQ(Tokenizer::from_json(make(metadata))->encode(" aa ", /*add_special=*/false),
      (std::vector<int32_t>{4, 3}));
  metadata["tokenizer.ggml.precompiled_charsmap"] = json::array{1, -1};
  EXPECT_THROW(Tokenizer::from_json(make(metadata)), Error);
  metadata["tokenizer.ggml.precompiled_charsmap"] = "no array";
  EXPECT_THROW(make(metadata), Error);
  metadata["tokenizer.ggml.token_type"] = json::array{1, 3, 1, 1, 1, 4, 6};
  metadata.erase("tokenizer.ggml.precompiled_charsmap");
  expect_model_error([&] { make(metadata); }, "no unknown token");
  metadata["tokenizer.ggml.unknown_token_id"] = uint64_t{0};
  EXPECT_EQ(Tokenizer::from_json(make(metadata))->vocab_size(), 7);
}

TEST(GgufTokenizer, UserDefinedPiecesAreFoundInTheText) {
  json::object metadata = pieces("llama");
  metadata["tokenizer.ggml.add_space_prefix"] = false;
  const auto tokenizer = Tokenizer::from_json(make(metadata));
  EXPECT_EQ(tokenizer->encode("a  a a", /*add_special=*/false), (std::vector<int32_t>{3, 5, 3, 4}));
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{3, 5, 3, 4}, /*skip_special=*/true), "a  a a");
  metadata["tokenizer.ggml.tokens"].as_array()[3] = "  ";
  expect_model_error([&] { make(metadata); }, "token 5 is in the vocabulary twice");
}

TEST(GgufTokenizer, PhiTokensSwallowBlanks) {
  json::object metadata = pieces("llama");
  metadata["general.architecture"] = "phi3";
  const auto phi3 = Tokenizer::from_json(make(metadata));
  EXPECT_EQ(phi3->encode("a </s> \n a", /*add_special=*/false), (std::vector<int32_t>{4, 2, 1, 4}));
  EXPECT_EQ(phi3->encode("<unk> a", /*add_special=*/false), (std::vector<int32_t>{0, 2, 4}));
  json::object byte_level = small_vocabulary("gpt2", "dbrx");
  byte_level["general.architecture"] = "phi3";
  byte_level["tokenizer.ggml.merges"] = json::array{};
  EXPECT_EQ(Tokenizer::from_json(make(byte_level))->encode("a \n<s> b", /*add_special=*/false),
      (std::vector<int32_t>{1, 0, 2}));
}

TEST(GgufTokenizer, NoVocabulary) { EXPECT_EQ(make(json::object()), ""); }

TEST(GgufTokenizer, RefusesByName) {
  const auto refused = [](const json::object& metadata, const char* message) {
    expect_model_error([&] { make(metadata); }, message);
  };
  refused(small_vocabulary("bert"), "the tokenizer 'bert'");
  refused(small_vocabulary("gpt2", "falcon"), "the pre-tokenizer 'falcon'");
  refused(small_vocabulary("gpt2", ""), "the pre-tokenizer ''");
  refused(small_vocabulary(), "'tokenizer.ggml.merges' is missing");
  refused(small_vocabulary("llama"), "'tokenizer.ggml.scores'");
  refused(small_vocabulary("t5"), "'tokenizer.ggml.scores'");
  expect_model_error([] { make(small_vocabulary(), 4); }, "only 4 rows");

  const auto with = [](const std::string& key, json::value value) {
    json::object metadata;
    metadata["tokenizer.ggml.model"] = "gpt2";
    metadata["tokenizer.ggml.pre"] = "gpt-2";
    metadata["tokenizer.ggml.tokens"] = json::array{"a", "b"};
    metadata["tokenizer.ggml.merges"] = json::array{};
    metadata[key] = std::move(value);
    return metadata;
  };
  refused(
      with("tokenizer.ggml.tokens", json::array{"a", "a"}), "token 1 is in the vocabulary twice");
  refused(with("tokenizer.ggml.tokens", json::array{std::string(2000, 'a')}), "too long");
  refused(with("tokenizer.ggml.tokens", uint64_t{3}), "not an array of strings");
  refused(with("tokenizer.ggml.token_type", json::array{1}), "differ in number");
  refused(with("tokenizer.ggml.token_type", json::array{1, 7}), "token 1 has no valid type");
  refused(with("tokenizer.ggml.token_type", json::array{1, std::nan("")}), "no valid type");
  refused(with("tokenizer.ggml.merges", json::array{"ab"}), "has no pair");
  refused(with("tokenizer.ggml.bos_token_id", uint64_t{2}), "bos_token_id");
}

// Every {"text", "ids"} of the golden's list.
void expect_ids(const Tokenizer& tokenizer, const std::string& golden, const char* list) {
  const json::value goldens = json::parse(read_all(golden));
  for (const json::value& line : goldens.at(list).as_array()) {
    const std::string text(line.at("text").as_string());
    std::vector<int32_t> ids;
    for (const json::value& id : line.at("ids").as_array()) {
      ids.push_back(static_cast<int32_t>(id.as_int64()));
    }
    EXPECT_EQ(tokenizer.encode(text, /*add_special=*/false), ids) << text;
    EXPECT_EQ(tokenizer.decode(ids, /*skip_special=*/false), text);
  }
}

TEST(GgufTokenizer, ByteLevelEncodesAsTransformers) {
  const auto gguf = open_checkpoint("tests/data/tiny-llama.gguf");
  const auto tokenizer = Tokenizer::from_json(gguf->tokenizer_json());
  EXPECT_EQ(tokenizer->vocab_size(), 512);
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{2}, /*skip_special=*/true), "");
  expect_ids(*tokenizer, "tests/data/goldens/tiny-llama-gguf.json", "prompts");
}

TEST(GgufTokenizer, SentencePieceEncodesAsTransformers) {
  const GgufFile gguf = read_gguf("tests/data/spm-vocab.gguf");
  const auto tokenizer = Tokenizer::from_json(make(gguf.metadata, 1024));
  expect_ids(*tokenizer, "tests/data/goldens/spm.json", "lines");
  // BOS comes before a text unless the file says otherwise.
  EXPECT_EQ(tokenizer->encode("water", /*add_special=*/true).front(), 1);
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(" leading", false), false), " leading");
}

TEST(GgufTokenizer, RealModelEncodesAsTransformers) {
  const char* path = std::getenv("MILLRACE_TEST_MODEL");
  const std::string model = path != nullptr ? path : "models/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!std::filesystem::exists(model)) GTEST_SKIP() << model << " is not here";
  const auto tokenizer = Tokenizer::from_json(open_checkpoint(model)->tokenizer_json());
  EXPECT_EQ(tokenizer->vocab_size(), 49152);
  expect_ids(*tokenizer, "tests/data/goldens/smollm2-text.json", "lines");
  // Digits are cut off first, so the spaces before one stay together.
  EXPECT_EQ(tokenizer->encode("a  1", false), (std::vector<int32_t>{81, 256, 33}));
}

}  // namespace
}  // namespace millrace
