// Tokenizer: exact ids of tiny vocabularies, lossy decoding, what is refused.
#include <gtest/gtest.h>

#include <thread>

#include "engine/base/status.h"
#include "engine/text/text.h"
#include "tests/engine/text/tiny_tokenizers.h"

namespace millrace {
namespace {

using Ids = std::vector<int32_t>;

std::shared_ptr<const Tokenizer> make(const boost::json::object& json) {
  return Tokenizer::from_json(boost::json::serialize(json));
}

std::string load_error(const boost::json::object& json) {
  try {
    make(json);
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::kModel);
    return error.what();
  }
  return "loaded";
}

TEST(Tokenizer, ByteLevelIds) {
  const auto tokenizer = make(byte_level_tokenizer());
  EXPECT_EQ(tokenizer->vocab_size(), 265);
  EXPECT_EQ(tokenizer->encode("hello w12", true), (Ids{258, 'o', 259, '1', '2'}));
  EXPECT_EQ(tokenizer->encode("<|im_start|>he<tool>\n", true), (Ids{260, 256, 262, '\n'}));
  EXPECT_EQ(
      tokenizer->encode("\u00e9\U0001F600", false), (Ids{0xc3, 0xa9, 0xf0, 0x9f, 0x98, 0x80}));
  EXPECT_EQ(tokenizer->encode("", true), Ids{});
  EXPECT_EQ(tokenizer->encode(std::string("a\0b", 3), true), (Ids{'a', 0, 'b'}));
  // The file's own truncation to 4 ids does not hold.
  EXPECT_EQ(tokenizer->encode("abcdefgh", true).size(), 8u);
}

TEST(Tokenizer, SentencePieceIds) {
  const auto tokenizer = make(sentence_piece_tokenizer());
  EXPECT_EQ(tokenizer->encode("a b", true), (Ids{1, 260, 259, 262}));
  EXPECT_EQ(tokenizer->encode("b\u00e9", false), (Ids{259, 262, 3 + 0xc3, 3 + 0xa9}));
  EXPECT_EQ(tokenizer->decode(Ids{1, 260, 259, 262}, true), "a b");
  EXPECT_EQ(tokenizer->decode(Ids{1, 260}, false), "<s> a");
  EXPECT_EQ(tokenizer->decode(Ids{263, 261}, true), " a");  // one of two leading spaces is text
  EXPECT_EQ(tokenizer->decode(Ids{261, 260}, true), "a a");
}

TEST(Tokenizer, BytesOfTokens) {
  const auto tokenizer = make(byte_level_tokenizer());
  EXPECT_EQ(tokenizer->token_bytes(259), " w");
  EXPECT_EQ(tokenizer->token_bytes(0xf0), "\xf0");
  EXPECT_EQ(tokenizer->token_bytes(0), std::string(1, '\0'));
  EXPECT_EQ(tokenizer->token_bytes(264), "<\uFF5Cend\uFF5C>");
  const auto sentence_piece = make(sentence_piece_tokenizer());
  EXPECT_EQ(sentence_piece->token_bytes(260), " a");
  EXPECT_EQ(sentence_piece->token_bytes(3 + 0xe2), "\xe2");
  EXPECT_EQ(sentence_piece->token_bytes(1), "<s>");
}

TEST(Tokenizer, DecodesInvalidBytesAsReplacementCharacters) {
  const auto tokenizer = make(byte_level_tokenizer());
  const std::pair<Ids, std::string> cases[] = {
      {{0xf0, 0x9f, 0x98}, "\uFFFD"},
      {{0xf0, 0x9f, 0x98, 'A'}, "\uFFFDA"},
      {{0xc0, 0x80}, "\uFFFD\uFFFD"},
      {{0xed, 0xa0, 0x80}, "\uFFFD\uFFFD\uFFFD"},
      {{0xf4, 0x90, 0x80, 0x80}, "\uFFFD\uFFFD\uFFFD\uFFFD"},
      {{0xe2, 0x82, 0xe2, 0x82, 0xac}, "\uFFFD\u20AC"},
      {{0xe2, 0x82, 261, 0xac}, "\uFFFD<|im_end|>\uFFFD"},
      {{0xef, 0xbf, 0xbd}, "\uFFFD"},
  };
  for (const auto& [ids, text] : cases) EXPECT_EQ(tokenizer->decode(ids, false), text);
  EXPECT_EQ(tokenizer->decode(Ids{260, 256, 262, 261}, true), "he<tool>");
}

TEST(Tokenizer, RefusesBadRequests) {
  const auto tokenizer = make(byte_level_tokenizer());
  EXPECT_THROW(tokenizer->encode("a\xff", true), RequestError);
  for (const int32_t id : {-1, 263, 265, INT32_MAX, INT32_MIN}) {
    EXPECT_THROW(tokenizer->decode(Ids{id}, false), RequestError) << id;
    EXPECT_THROW(tokenizer->token_bytes(id), RequestError) << id;
  }
}

TEST(Tokenizer, RefusesBrokenFiles) {
  for (const char* text : {"", "{", "[]", "{}", "null", "\xff"}) {
    EXPECT_THROW(Tokenizer::from_json(text), Error) << text;
  }
  auto no_decoder = byte_level_tokenizer();
  no_decoder["decoder"] = nullptr;
  EXPECT_NE(load_error(no_decoder).find("decoder has a step (none at all)"), std::string::npos);
  auto word_piece = byte_level_tokenizer();
  word_piece["decoder"] = {{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", true}};
  EXPECT_NE(load_error(word_piece).find("(WordPiece)"), std::string::npos);
  auto huge_id = byte_level_tokenizer();
  huge_id["model"].as_object()["vocab"].as_object()["zz"] = 4294967295u;
  EXPECT_NE(load_error(huge_id).find("4294967296"), std::string::npos);
  // The library would give it another id in silence.
  auto moved_id = byte_level_tokenizer();
  moved_id["added_tokens"].as_array().push_back(added_token(300, "<moved>", true));
  EXPECT_NE(load_error(moved_id).find("<moved>"), std::string::npos);
  auto bad_pattern = byte_level_tokenizer();
  bad_pattern["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", "("}}},
      {"behavior", "Isolated"}, {"invert", false}};
  EXPECT_NE(load_error(bad_pattern).find("parenthesis"), std::string::npos);
}

TEST(Tokenizer, PanicsOfTheLibraryAreErrors) {
  auto division_by_zero = byte_level_tokenizer();
  division_by_zero["pre_tokenizer"] = {{"type", "FixedLength"}, {"length", 0}};
  const auto tokenizer = make(division_by_zero);
  try {
    tokenizer->encode("hello", true);
    FAIL() << "encoded";
  } catch (const RequestError& error) {
    EXPECT_NE(std::string(error.what()).find("panicked"), std::string::npos) << error.what();
  }
  auto cut_character = byte_level_tokenizer();
  auto& model = cut_character["model"].as_object();
  model["vocab"] = {{"a", 0}, {"\u00e9", 1}};
  model["merges"] = boost::json::array{"a \u00e9"};
  model["continuing_subword_prefix"] = "x";
  EXPECT_NE(load_error(cut_character).find("out of vocabulary"), std::string::npos);
}

TEST(Tokenizer, IdsOfThePostProcessorAreChecked) {
  auto foreign_id = byte_level_tokenizer();
  const boost::json::array outside = {"x", 99999999};
  foreign_id["post_processor"] = {{"type", "RobertaProcessing"}, {"sep", outside}, {"cls", outside},
      {"trim_offsets", true}, {"add_prefix_space", false}};
  const auto tokenizer = make(foreign_id);
  EXPECT_EQ(tokenizer->encode("he", false), Ids{256});
  EXPECT_THROW(tokenizer->encode("he", true), RequestError);
}

TEST(Tokenizer, IsSafeFromManyThreads) {
  const auto tokenizer = make(byte_level_tokenizer());
  const std::string text = "hello w 123 \u00e9 hell well <|im_end|> hhelllo";
  const Ids expected = tokenizer->encode(text, true);
  std::vector<int> wrong(4);
  std::vector<std::thread> threads;
  for (int& count : wrong) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) count += tokenizer->encode(text, true) != expected;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, (std::vector<int>{0, 0, 0, 0}));
}

}  // namespace
}  // namespace millrace
