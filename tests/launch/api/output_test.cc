#include "launch/api/output.h"

#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <functional>
#include <set>

#include "tests/launch/test_model.h"

namespace millrace {
namespace {

// Every byte substring of `text` that is longer than one byte, once, for tokens.
std::vector<std::string> substrings(const std::string& text) {
  std::set<std::string> all;
  for (size_t begin = 0; begin < text.size(); ++begin)
    for (size_t end = begin + 2; end <= text.size(); ++end)
      all.insert(text.substr(begin, end - begin));
  return {all.begin(), all.end()};
}

// Without the bytes of a last character that is not finished.
std::string finished(std::string text) {
  size_t last = text.size();
  while (last > 0 && (text[--last] & 0xC0) == 0x80) continue;
  const auto lead = static_cast<unsigned char>(text.empty() ? 0 : text[last]);
  const size_t length = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  if (text.size() - last < length) text.resize(last);
  return text;
}

int32_t id_of(const std::vector<std::string>& extra, const std::string& token) {
  if (token.size() == 1) return static_cast<unsigned char>(token[0]);
  const auto at = std::find(extra.begin(), extra.end(), token);
  return kFirstExtraToken + static_cast<int32_t>(at - extra.begin());
}

// All ways of cutting `text` into pieces.
void for_each_cut(const std::string& text, const std::function<void(std::vector<std::string>)>& f) {
  for (uint32_t cuts = 0; cuts < 1u << (text.size() - 1); ++cuts) {
    std::vector<std::string> pieces(1);
    for (size_t i = 0; i < text.size(); ++i) {
      pieces.back() += text[i];
      if (i + 1 < text.size() && (cuts >> i & 1)) pieces.emplace_back();
    }
    f(pieces);
  }
}

ApiCall make_call(std::vector<std::string> stop, int num_logprobs = -1) {
  ApiCall call;
  call.kind = ApiKind::kCompletion;
  call.choices.resize(1);
  call.choices[0].request.sampling.num_logprobs = num_logprobs;
  call.choices[0].request.stop_token_ids = {kEos};
  call.stop = std::move(stop);
  call.prompt_tokens = 3;
  return call;
}

Emission emit(std::vector<int32_t> ids, FinishReason finish = FinishReason::kNone) {
  Emission emission;
  for (const int32_t id : ids) emission.tokens.push_back({id, -0.5f, {{id, -0.5f}, {66, -1.5f}}});
  emission.finish = finish;
  return emission;
}

// What a reader sees without streaming: the text up to the stop string that ends first.
std::string expected_text(
    const std::string& text, const std::vector<std::string>& stops, bool include) {
  for (size_t end = 1; end <= text.size(); ++end) {
    std::string longest;
    for (const std::string& stop : stops)
      if (text.substr(0, end).ends_with(stop) && stop.size() > longest.size()) longest = stop;
    if (!longest.empty()) return text.substr(0, include ? end : end - longest.size());
  }
  return text;
}

TEST(OutputStream, StopStringsDoNotDependOnHowTheTextIsCut) {
  struct Case {
    std::string text;
    std::vector<std::string> stops;
  };
  const std::vector<Case> cases = {
      {"one<END>two", {"<END>"}},
      {"aaab aab", {"aab"}},
      {"abcabdx", {"abd", "zz"}},
      {"xabcdy", {"abcd", "bc"}},
      {"xabcy", {"abc", "bc"}},
      {"caf\xC3\xA9!\xF0\x9F\x98\x80x", {"\xC3\xA9!\xF0\x9F\x98\x80"}},
      {"\xF0\x9F\x98\x80\xF0\x9F\x98\x81", {"\xF0\x9F\x98\x81"}},
      {"no stop <EN", {"<END>"}},
      {"END", {"END"}},
  };
  for (const Case& test : cases) {
    const std::vector<std::string> extra = substrings(test.text);
    const auto tokenizer = Tokenizer::from_json(test_tokenizer_json(extra));
    for (const bool include : {false, true}) {
      const std::string expected = expected_text(test.text, test.stops, include);
      const bool stops = expected_text(test.text, test.stops, false) != test.text;
      for_each_cut(test.text, [&](const std::vector<std::string>& pieces) {
        ApiCall call = make_call(test.stops, 0);
        call.include_stop_str_in_output = include;
        OutputStream stream(call, 0, tokenizer);
        OutputPiece whole;
        std::string logprob_text;
        bool cancelled = false;
        for (size_t i = 0; i < pieces.size() && !stream.done(); ++i) {
          const bool last = i + 1 == pieces.size();
          OutputPiece piece = stream.push(
              emit({id_of(extra, pieces[i])}, last ? FinishReason::kLength : FinishReason::kNone));
          cancelled |= piece.stopped_by_string;
          EXPECT_EQ(piece.token_ids.size(), piece.logprobs.size());
          for (const auto& entry : piece.logprobs)
            logprob_text += tokenizer->token_bytes(entry.sampled.token);
          whole.append(std::move(piece));
          // No stop string is shown, not even for a moment; no entry runs ahead of its text.
          EXPECT_TRUE(expected.starts_with(whole.text));
          EXPECT_TRUE(stream.done() || whole.text.starts_with(finished(logprob_text)));
        }
        ASSERT_EQ(whole.text, expected);
        EXPECT_EQ(whole.finish, stops ? FinishReason::kStop : FinishReason::kLength);
        EXPECT_EQ(cancelled, stops && stream.num_tokens() < static_cast<int>(pieces.size()));
        // The tokens kept are those that show at least one byte of the text.
        EXPECT_TRUE(logprob_text.starts_with(whole.text));
        EXPECT_TRUE(whole.logprobs.empty() ||
                    logprob_text.size() - tokenizer->token_bytes(whole.token_ids.back()).size() <
                        std::max<size_t>(whole.text.size(), 1));
        EXPECT_TRUE(stream.push(emit({65})).empty());
      });
    }
  }
}

TEST(OutputStream, PiecesAreWholeCharactersAndAddUp) {
  const std::string text = "h\xC3\xA9 \xF0\x9F\x98\x80 \xE2\x82\xAC";
  const auto tokenizer = Tokenizer::from_json(test_tokenizer_json({}));
  OutputStream stream(make_call({}, 0), 0, tokenizer);
  OutputPiece whole;
  std::vector<int32_t> offsets;
  for (const char c : text) {
    OutputPiece piece = stream.push(emit({static_cast<unsigned char>(c)}));
    EXPECT_EQ(tokenizer->decode(std::vector<int32_t>(piece.token_ids), false), piece.text);
    for (const auto& entry : piece.logprobs) offsets.push_back(entry.text_offset);
    whole.append(std::move(piece));
  }
  EXPECT_EQ(whole.text, text);
  // h, two bytes of é, a space, four of 😀, a space, three of €.
  EXPECT_EQ(offsets, (std::vector<int32_t>{0, 1, 1, 2, 3, 3, 3, 3, 4, 5, 5, 5}));
}

TEST(OutputStream, AnUnfinishedCharacterEndsAsAReplacement) {
  const auto tokenizer = Tokenizer::from_json(test_tokenizer_json({}));
  OutputStream stream(make_call({}, 0), 0, tokenizer);
  EXPECT_TRUE(stream.push(emit({0xF0})).empty());
  const OutputPiece piece = stream.push(emit({0x9F}, FinishReason::kLength));
  EXPECT_EQ(piece.text, "\xEF\xBF\xBD");
  EXPECT_EQ(piece.logprobs.size(), 2u);
  EXPECT_EQ(piece.finish, FinishReason::kLength);
}

TEST(OutputStream, TheStopTokenIsCountedButNotShown) {
  const auto tokenizer = Tokenizer::from_json(test_tokenizer_json({}));
  ApiCall call = make_call({}, 0);
  call.skip_special_tokens = false;
  call.choices[0].request.stop_token_ids = {kEos, 'z'};
  for (const int32_t stop : {kEos, int32_t{'z'}}) {
    OutputStream stream(call, 0, tokenizer);
    const OutputPiece piece = stream.push(emit({'a', 'b', stop}, FinishReason::kStop));
    EXPECT_EQ(piece.text, "ab");
    EXPECT_EQ(piece.logprobs.size(), 2u);
    EXPECT_EQ(piece.finish, FinishReason::kStop);
    EXPECT_FALSE(piece.stopped_by_string);
    EXPECT_EQ(stream.num_tokens(), 3);
  }
  call.include_stop_str_in_output = true;
  OutputStream stream(call, 0, tokenizer);
  EXPECT_EQ(stream.push(emit({'a', 'z'}, FinishReason::kStop)).text, "az");
}

TEST(OutputStream, HeldTextComesOutAtTheEnd) {
  const auto tokenizer = Tokenizer::from_json(test_tokenizer_json({}));
  OutputStream stream(make_call({"abc"}), 0, tokenizer);
  EXPECT_EQ(stream.push(emit({'x', 'a', 'b'})).text, "x");
  EXPECT_EQ(stream.push(emit({kEos}, FinishReason::kStop)).text, "ab");
  EXPECT_TRUE(stream.done());
}

TEST(OutputStream, MinTokensKeepsEarlyStopStrings) {
  const auto tokenizer = Tokenizer::from_json(test_tokenizer_json({}));
  ApiCall call = make_call({"ab"});
  call.choices[0].request.min_tokens = 3;
  OutputStream stream(call, 0, tokenizer);
  OutputPiece whole;
  for (const char c : std::string("ababxab")) whole.append(stream.push(emit({c})));
  EXPECT_EQ(whole.text, "ab");  // the first "ab" came too early, the second counts
  EXPECT_EQ(stream.num_tokens(), 4);
}

TEST(OutputStream, AnErrorEndsTheChoice) {
  const auto tokenizer = Tokenizer::from_json(test_tokenizer_json({}));
  OutputStream stream(make_call({}), 0, tokenizer);
  Emission emission = emit({}, FinishReason::kError);
  emission.status = {ErrorCode::kInternal, "broken", ""};
  const OutputPiece piece = stream.push(emission);
  EXPECT_EQ(piece.finish, FinishReason::kError);
  EXPECT_EQ(piece.status.message, "broken");
}

TEST(OutputStream, IdsBeyondTheTokenizerHaveNoText) {
  const auto tokenizer = Tokenizer::from_json(test_tokenizer_json({}));
  OutputStream stream(make_call({}, 0), 0, tokenizer);
  EXPECT_EQ(stream.push(emit({100'000})).text, "");
  const OutputPiece piece = stream.push(emit({'a'}));
  EXPECT_EQ(piece.text, "a");
  EXPECT_EQ(piece.token_ids, (std::vector<int32_t>{100'000, 'a'}));
}

class Writer : public ::testing::Test {
 protected:
  void expect(const std::string& written, const char* golden) {
    EXPECT_EQ(boost::json::parse(written), boost::json::parse(golden)) << written;
  }
  OutputPiece piece(const std::string& text, FinishReason finish = FinishReason::kNone) {
    OutputPiece made;
    made.text = text;
    made.finish = finish;
    return made;
  }
  OutputPiece with_logprobs() {
    OutputPiece made = piece("A\xC3\xA9", FinishReason::kLength);
    made.logprobs.push_back({{'A', -0.5f, {{'A', -0.5f}, {'B', -2.0f}}}, 0});
    made.logprobs.push_back({{0xC3, -INFINITY, {}}, 1});
    return made;
  }

  ModelContext model_ = test_model();
};

TEST_F(Writer, Chat) {
  ApiCall call = make_call({});
  call.kind = ApiKind::kChat;
  const ResponseWriter writer(call, model_, "chatcmpl-1", 1'700'000'001);
  expect(writer.response({piece("Hello\n\"you\"", FinishReason::kStop)}, 5), R"({
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1700000001, "model": "test-model",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello\n\"you\"",
      "refusal": null}, "logprobs": null, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}})");
}

TEST_F(Writer, UsageSoFar) {
  ApiCall call = make_call({});
  call.continuous_usage = true;
  const ResponseWriter writer(call, model_, "cmpl-1", 1'700'000'001);
  EXPECT_EQ(boost::json::parse(writer.chunk(0, piece("x"), false, 4)).at("usage"),
      boost::json::parse(R"({"prompt_tokens":3,"completion_tokens":4,"total_tokens":7})"));
}

TEST_F(Writer, ChatChunks) {
  ApiCall call = make_call({});
  call.kind = ApiKind::kChat;
  call.include_usage = true;
  const ResponseWriter writer(call, model_, "chatcmpl-1", 1'700'000'001);
  const std::string head =
      R"({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1700000001,
          "model": "test-model", )";
  expect(writer.chunk(0, piece("Hel"), true, 4),
      (head + R"("choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hel"},
            "logprobs": null, "finish_reason": null}], "usage": null})")
          .c_str());
  expect(writer.chunk(0, piece("lo"), false, 4),
      (head + R"("choices": [{"index": 0, "delta": {"content": "lo"}, "logprobs": null,
            "finish_reason": null}], "usage": null})")
          .c_str());
  expect(writer.chunk(0, piece("", FinishReason::kLength), false, 4),
      (head + R"("choices": [{"index": 0, "delta": {}, "logprobs": null,
            "finish_reason": "length"}], "usage": null})")
          .c_str());
  expect(writer.usage_chunk(2), (head + R"("choices": [], "usage": {"prompt_tokens": 3,
            "completion_tokens": 2, "total_tokens": 5}})")
                                    .c_str());
  call.include_usage = false;
  EXPECT_EQ(writer.chunk(0, piece("x"), false, 4).find("usage"), std::string::npos);
}

TEST_F(Writer, ChatLogprobs) {
  ApiCall call = make_call({}, 2);
  call.kind = ApiKind::kChat;
  const ResponseWriter writer(call, model_, "chatcmpl-1", 1);
  expect(writer.chunk(0, with_logprobs(), false, 4), R"({
    "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "test-model",
    "choices": [{"index": 0, "delta": {"content": "Aé"}, "finish_reason": "length", "logprobs": {
      "content": [
        {"token": "A", "logprob": -0.5, "bytes": [65], "top_logprobs": [
          {"token": "A", "logprob": -0.5, "bytes": [65]},
          {"token": "B", "logprob": -2.0, "bytes": [66]}]},
        {"token": "\ufffd", "logprob": -9999.0, "bytes": [195], "top_logprobs": []}],
      "refusal": null}}]})");
}

TEST_F(Writer, CompletionWithLogprobsAndEcho) {
  ApiCall call = make_call({}, 2);
  call.choices[0].echo = "Once ";
  call.return_token_ids = true;
  const ResponseWriter writer(call, model_, "cmpl-1", 1);
  OutputPiece whole = with_logprobs();
  whole.token_ids = {65, 0xC3};
  expect(writer.response({whole}, 2), R"({
    "id": "cmpl-1", "object": "text_completion", "created": 1, "model": "test-model",
    "choices": [{"index": 0, "text": "Once Aé", "finish_reason": "length",
      "token_ids": [65, 195], "logprobs": {
      "tokens": ["A", "\ufffd"], "token_logprobs": [-0.5, -9999.0],
      "top_logprobs": [{"A": -0.5, "B": -2.0}, {"\ufffd": -9999.0}], "text_offset": [0, 1]}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}})");
  EXPECT_NE(writer.chunk(0, piece("x"), true, 4).find("Once x"), std::string::npos);
  EXPECT_EQ(writer.chunk(0, piece("x"), false, 4).find("Once"), std::string::npos);
}

TEST_F(Writer, CompletionChunk) {
  ApiCall call = make_call({});
  const ResponseWriter writer(call, model_, "cmpl-1", 1);
  expect(writer.chunk(0, piece("x", FinishReason::kStop), true, 4), R"({
    "id": "cmpl-1", "object": "text_completion", "created": 1, "model": "test-model",
    "choices": [{"index": 0, "text": "x", "logprobs": null, "finish_reason": "stop"}]})");
}

}  // namespace
}  // namespace millrace
