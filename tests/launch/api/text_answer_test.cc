// /tokenize and /detokenize.
#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>

#include "launch/api/openai.h"
#include "tests/launch/test_model.h"

namespace millrace {
namespace {

namespace json = boost::json;

class TextAnswer : public ::testing::Test {
 protected:
  json::value tokenize(const std::string& body) {
    return json::parse(text_answer(ApiKind::kTokenize, body, model_));
  }
  std::string detokenize(const std::string& body) {
    return text_answer(ApiKind::kDetokenize, body, model_);
  }
  Status refusal(ApiKind kind, const std::string& body) {
    try {
      text_answer(kind, body, model_);
      return {};
    } catch (const RequestError& error) {
      return error.status();
    }
  }
  ModelContext model_ = test_model({"Hello"});
};

TEST_F(TextAnswer, TokenizesATextAndAChat) {
  EXPECT_EQ(tokenize(R"({"prompt":"ab","model":"test-model"})"),
      json::parse(R"({"count":2,"max_model_len":256,"tokens":[97,98],"token_strs":null})"));
  EXPECT_EQ(tokenize(R"({"prompt":""})").at("count"), 0);
  // Special tokens in the text are tokens; half of a character shows as U+FFFD.
  EXPECT_EQ(tokenize(R"({"prompt":"<eos>\u00e9","return_token_strs":true})").at("token_strs"),
      json::parse(R"(["<eos>","\ufffd","\ufffd"])"));
  const std::string chat = R"("messages":[{"role":"user","content":"Hi"}])";
  const std::string with = "<|user|>Hi\n<|assistant|>", without = "<|user|>Hi\n";
  EXPECT_EQ(tokenize("{" + chat + "}").at("count"), with.size());
  EXPECT_EQ(
      tokenize("{" + chat + R"(,"add_generation_prompt":false})").at("count"), without.size());
}

TEST_F(TextAnswer, DetokenizesEveryIdOfTheTokenizer) {
  EXPECT_EQ(detokenize(R"({"tokens":[72,105,256,257]})"), R"({"prompt":"Hi<eos>Hello"})");
  EXPECT_EQ(detokenize(R"({"tokens":[]})"), R"({"prompt":""})");
}

TEST_F(TextAnswer, RefusesByName) {
  using K = ApiKind;
  const std::tuple<K, const char*, const char*> cases[] = {
      {K::kTokenize, R"({})", "prompt"},
      {K::kTokenize, R"({"prompt":["a"]})", "prompt"},
      {K::kTokenize, R"({"prompt":"a","messages":[]})", "prompt"},
      {K::kTokenize, R"({"messages":[]})", "messages"},
      {K::kTokenize, R"({"prompt":"a","add_special_tokens":1})", "add_special_tokens"},
      {K::kTokenize, R"({"prompt":"a","return_token_strs":"x"})", "return_token_strs"},
      {K::kTokenize, R"({"prompt":"a","tools":[{}]})", "tools"},
      {K::kTokenize, R"({"prompt":"a","chat_template":"x"})", "chat_template"},
      {K::kDetokenize, R"({})", "tokens"},
      {K::kDetokenize, R"({"tokens":5})", "tokens"},
      {K::kDetokenize, R"({"tokens":[-1]})", "tokens"},
      {K::kDetokenize, R"({"tokens":[258]})", "tokens"},
      {K::kDetokenize, R"({"tokens":[1.5]})", "tokens"},
      {K::kDetokenize, R"({"tokens":[1],"model":"other"})", "model"},
  };
  for (const auto& [kind, body, param] : cases) EXPECT_EQ(refusal(kind, body).param, param) << body;
  EXPECT_EQ(refusal(K::kTokenize, "[]").code, ErrorCode::kInvalidArgument);
  // What cannot fit the context is not tokenized: that would take seconds.
  const std::string huge(256 * 257, 'a');
  EXPECT_EQ(refusal(K::kTokenize, R"({"prompt":")" + huge + "\"}").code,
      ErrorCode::kContextLengthExceeded);
}

}  // namespace
}  // namespace millrace
