// Detokenizer: what a stream gives out is the whole text, in whole characters, as early as it can.
#include <gtest/gtest.h>

#include <random>

#include "engine/text/text.h"
#include "tests/engine/text/tiny_tokenizers.h"

namespace millrace {
namespace {

using Ids = std::vector<int32_t>;

std::shared_ptr<const Tokenizer> make(const boost::json::object& json) {
  return Tokenizer::from_json(boost::json::serialize(json));
}

// Whole characters only, by their lengths: no bits of the library under test.
bool is_whole(const std::string& text) {
  size_t i = 0;
  while (i < text.size()) {
    const auto lead = static_cast<uint8_t>(text[i++]);
    if (lead >= 0x80 && lead < 0xc2) return false;
    int tail = 0;
    if (lead >= 0xc2) tail = lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
    for (; tail > 0; --tail, ++i) {
      if (i >= text.size() || (static_cast<uint8_t>(text[i]) & 0xc0) != 0x80) return false;
    }
  }
  return true;
}

std::string stream(
    const std::shared_ptr<const Tokenizer>& tokenizer, const Ids& ids, bool skip_special) {
  Detokenizer detokenizer(tokenizer, {}, skip_special);
  std::string text;
  for (const int32_t id : ids) {
    const std::string piece = detokenizer.push(id);
    EXPECT_TRUE(is_whole(piece));
    text += piece;
  }
  return text + detokenizer.finish();
}

TEST(Detokenizer, GivesTheWholeForRandomIds) {
  const Ids emoji[] = {{0xf0, 0x9f, 0x98, 0x80}, {0xe2, 0x82, 0xac}, {0xef, 0xbf, 0xbd}, {0xc3}};
  for (const bool bytes : {true, false}) {
    const auto tokenizer = make(bytes ? byte_level_tokenizer() : sentence_piece_tokenizer());
    std::mt19937 random(7);
    for (int round = 0; round < 2000; ++round) {
      Ids ids;
      for (size_t size = random() % 40; ids.size() < size;) {
        if (random() % 3 == 0) {
          for (const int32_t byte : emoji[random() % 4]) ids.push_back(bytes ? byte : 3 + byte);
        } else if (const auto id = static_cast<int32_t>(random() % tokenizer->vocab_size());
                   !bytes || id != 263) {
          ids.push_back(id);
        }
      }
      for (const bool skip : {true, false}) {
        ASSERT_EQ(stream(tokenizer, ids, skip), tokenizer->decode(ids, skip)) << round;
      }
    }
  }
}

TEST(Detokenizer, HoldsBackOnlyWhatIsNotComplete) {
  Detokenizer detokenizer(make(byte_level_tokenizer()), {}, true);
  EXPECT_EQ(detokenizer.push(258), "hell");
  EXPECT_EQ(detokenizer.push(0xf0), "");
  EXPECT_EQ(detokenizer.push(0x9f), "");
  EXPECT_EQ(detokenizer.push(0x98), "");
  EXPECT_EQ(detokenizer.push(0x80), "\U0001F600");
  // U+FFFD written by the model is a character like any other.
  EXPECT_EQ(detokenizer.push(0xef), "");
  EXPECT_EQ(detokenizer.push(0xbf), "");
  EXPECT_EQ(detokenizer.push(0xbd), "\uFFFD");
  // What can no longer become a character is given out at once.
  EXPECT_EQ(detokenizer.push(0xff), "\uFFFD");
  EXPECT_EQ(detokenizer.push(0xe2), "");
  EXPECT_EQ(detokenizer.push('x'), "\uFFFDx");
  EXPECT_EQ(detokenizer.push(261), "");
  EXPECT_EQ(detokenizer.push(263), "");  // a hole in the vocabulary
  EXPECT_EQ(detokenizer.push(-1), "");
  EXPECT_EQ(detokenizer.push(0xe2), "");
  EXPECT_EQ(detokenizer.push(0x82), "");
  EXPECT_EQ(detokenizer.finish(), "\uFFFD");
  EXPECT_EQ(detokenizer.finish(), "");
}

TEST(Detokenizer, ContinuesThePrompt) {
  const auto tokenizer = make(sentence_piece_tokenizer());
  Detokenizer alone(tokenizer, {}, true);
  EXPECT_EQ(alone.push(260), "a");
  Detokenizer after_bos(tokenizer, Ids{1}, true);
  EXPECT_EQ(after_bos.push(260), "a");
  Detokenizer after_text(tokenizer, Ids{1, 260}, true);
  EXPECT_EQ(after_text.push(260), " a");
  // A character the prompt began belongs to the stream.
  Detokenizer in_character(tokenizer, Ids{1, 260, 3 + 0xe2, 3 + 0x82}, true);
  EXPECT_EQ(in_character.push(3 + 0xac), "");
  EXPECT_EQ(in_character.push(261), "\u20ACa");
  // One that the prompt ended does not.
  Detokenizer after_character(tokenizer, Ids{1, 260, 3 + 0xe2, 3 + 0x82, 3 + 0xac}, true);
  EXPECT_EQ(after_character.push(261), "a");
}

TEST(Detokenizer, ARunOfByteTokensIsTextOrInvalidAsAWhole) {
  const auto tokenizer = make(sentence_piece_tokenizer());
  const auto stand_in = [](int byte) { return 3 + byte; };
  Detokenizer detokenizer(tokenizer, Ids{1, 261}, true);
  for (const int byte : {0xe2, 0x82, 0xac, 0x78}) EXPECT_EQ(detokenizer.push(stand_in(byte)), "");
  EXPECT_EQ(detokenizer.push(1), "");  // skipped: the run goes on
  EXPECT_EQ(detokenizer.push(261), "\u20ACxa");
  for (const int byte : {0x78, 0xe2, 0x82}) EXPECT_EQ(detokenizer.push(stand_in(byte)), "");
  EXPECT_EQ(detokenizer.push(261), "\uFFFD\uFFFD\uFFFDa");
  EXPECT_EQ(detokenizer.push(stand_in(' ')), "");
  EXPECT_EQ(detokenizer.finish(), " ");
}

TEST(Detokenizer, MetaspaceDropsTheSpacesOfTheFirstToken) {
  auto json = sentence_piece_tokenizer();
  json["decoder"] = {{"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", "always"},
      {"split", false}};
  const auto tokenizer = make(json);
  EXPECT_EQ(stream(tokenizer, {1, 263, 260}, /*skip_special=*/true), " a");
  EXPECT_EQ(stream(tokenizer, {1, 263, 260}, /*skip_special=*/false), "<s>   a");
  EXPECT_EQ(tokenizer->decode(Ids{263, 260}, /*skip_special=*/false), " a");
}

TEST(Detokenizer, GivesEveryTokenOfALongStreamAtOnce) {
  Detokenizer detokenizer(make(byte_level_tokenizer()), {}, true);
  for (int i = 0; i < 200000; ++i) ASSERT_EQ(detokenizer.push(259), " w");
}

}  // namespace
}  // namespace millrace
