// Logprobs of the prompt, and what bends a draw towards or away from some tokens.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <boost/json/parse.hpp>

#include "launch/api/open_call.h"
#include "tests/launch/fake_engine.h"
#include "tests/launch/test_model.h"

namespace millrace {
namespace {

using Biases = std::vector<TokenBias>;

class LogprobsApi : public ::testing::Test {
 protected:
  ApiCall parse(const std::string& fields, ApiKind kind = ApiKind::kCompletion) {
    std::string body("{");
    body += fields;
    if (kind == ApiKind::kChat) body += R"(,"messages":[{"role":"user","content":"Hi"}])";
    else if (!fields.starts_with("\"prompt\"")) body += R"(,"prompt":"Hi")";
    body += "}";
    return parse_call(kind, body, model_);
  }
  Status refusal(const std::string& fields, ApiKind kind = ApiKind::kCompletion) {
    try {
      parse(fields, kind);
      return {};
    } catch (const RequestError& error) {
      EXPECT_FALSE(error.status().message.empty());
      return error.status();
    }
  }
  // What a client gets of prompt ids that have logprobs of -id / 64, with the ids before and after
  // as the likeliest (-0.25 and -1), when the engine then samples `answer`.
  boost::json::value answer(
      const ApiCall& parsed, const std::string& text, FinishReason finish = FinishReason::kLength) {
    FakeEngine engine;
    OpenCall call(engine, model_, parsed);
    call.submit([](size_t) { return [](const Emission&) {}; });
    std::string said;
    for (size_t i = 0; i < parsed.choices.size(); ++i) {
      Emission emission;
      const auto& prompt = parsed.choices[i].request.prompt;
      if (parsed.choices[i].request.sampling.num_prompt_logprobs >= 0)
        for (size_t at = 1; at < prompt.size(); ++at) {
          const int32_t id = prompt[at];
          emission.prompt.push_back(
              {id, -static_cast<float>(id) / 64, {{id - 1, -0.25f}, {id + 1, -1}}});
        }
      for (const char c : text) emission.tokens.push_back({c, -0.5f, {{c, -0.5f}}});
      emission.finish = finish;
      said += call.take(i, emission).text;
    }
    if (parsed.stream) return boost::json::string(said);
    return boost::json::parse(said);
  }

  ModelContext model_ = test_model();
};

TEST_F(LogprobsApi, EchoWithLogprobsAsksThePrompts) {
  const auto sampling = [&](const std::string& fields, ApiKind kind = ApiKind::kCompletion) {
    return parse(fields, kind).choices[0].request.sampling.num_prompt_logprobs;
  };
  EXPECT_EQ(sampling(R"("logprobs":5)"), -1);
  EXPECT_EQ(sampling(R"("echo":true)"), -1);
  EXPECT_EQ(sampling(R"("echo":true,"logprobs":0)"), 0);
  EXPECT_EQ(sampling(R"("echo":true,"logprobs":5)"), 5);
  EXPECT_EQ(sampling(R"("echo":true,"logprobs":5,"prompt_logprobs":7)"), 7);
  EXPECT_EQ(sampling(R"("logprobs":5,"prompt_logprobs":0)"), 0);
  EXPECT_EQ(sampling(R"("prompt_logprobs":20)", ApiKind::kChat), 20);
  EXPECT_EQ(refusal(R"("prompt_logprobs":21)").param, "prompt_logprobs");
  EXPECT_EQ(refusal(R"("prompt_logprobs":-1)").param, "prompt_logprobs");
  EXPECT_EQ(refusal(R"("prompt_logprobs":1,"stream":true)").param, "prompt_logprobs");
  EXPECT_EQ(refusal(R"("prompt":["a","b"],"prompt_logprobs":1,"n":128)").message, "");
  model_.max_model_len = 20'000;
  const std::string prompt = "\"prompt\":\"" + std::string(15'000, 'a') + "\"";
  EXPECT_EQ(refusal(prompt + R"(,"n":3,"prompt_logprobs":10)").message, "");
  EXPECT_EQ(refusal(prompt + R"(,"n":4,"prompt_logprobs":10)").param, "prompt_logprobs");
  EXPECT_EQ(refusal(prompt + R"(,"n":40,"echo":true,"logprobs":0)").param, "logprobs");
  EXPECT_EQ(refusal(prompt + R"(,"n":30,"echo":true,"logprobs":0)").message, "");
  EXPECT_EQ(refusal(prompt + R"(,"n":40,"logprobs":0)").message, "");
  // A chat's choices have one prompt: its logprobs are computed once.
  const ApiCall chat = parse(R"("prompt_logprobs":2,"n":2)", ApiKind::kChat);
  EXPECT_EQ(chat.choices[0].request.sampling.num_prompt_logprobs, 2);
  EXPECT_EQ(chat.choices[1].request.sampling.num_prompt_logprobs, -1);
}

TEST_F(LogprobsApi, TheEchoIsPartOfTheLogprobs) {
  const auto choice =
      answer(parse(R"("prompt":[65,195,169,66],"echo":true,"logprobs":1,"max_tokens":1)"), "C")
          .at("choices")
          .at(0);
  EXPECT_EQ(choice.at("text"),
      "A\xC3\xA9"
      "BC");
  EXPECT_EQ(choice.at("logprobs"), boost::json::parse(R"({
    "tokens": ["A", "\ufffd", "\ufffd", "B", "C"],
    "token_logprobs": [null, -3.046875, -2.640625, -1.03125, -0.5],
    "top_logprobs": [null, {"\ufffd": -0.25}, {"\ufffd": -0.25}, {"A": -0.25, "B": -1.03125},
      {"C": -0.5}],
    "text_offset": [0, 1, 1, 2, 3]})"));
  EXPECT_FALSE(choice.as_object().contains("prompt_logprobs"));
}

// A reader of an echo cuts off what was sampled: it finds it there even when it ends the text.
TEST_F(LogprobsApi, TheEchosLogprobsEndWithTheStopToken) {
  const ApiCall call = parse(R"("echo":true,"logprobs":0,"stop_token_ids":[67])");
  const auto choice = answer(call, "BC", FinishReason::kStop).at("choices").at(0);
  EXPECT_EQ(choice.at("text"), "HiB");
  EXPECT_EQ(choice.at("logprobs").at("tokens"), boost::json::parse(R"(["H","i","B","C"])"));
  EXPECT_EQ(choice.at("logprobs").at("text_offset"), boost::json::parse("[0,1,2,3]"));
}

TEST_F(LogprobsApi, APromptOfOneTokenHasNoLogprob) {
  const auto logprobs = answer(parse(R"("prompt":"A","echo":true,"logprobs":0)"), "B")
                            .at("choices")
                            .at(0)
                            .at("logprobs");
  EXPECT_EQ(logprobs.at("token_logprobs"), boost::json::parse("[null,-0.5]"));
  EXPECT_EQ(logprobs.at("text_offset"), boost::json::parse("[0,1]"));
}

TEST_F(LogprobsApi, PromptLogprobsAreThoseOfVllm) {
  const char* expected =
      R"([null, {"105": {"logprob": -1.640625, "rank": null, "decoded_token": "i"},
      "104": {"logprob": -0.25, "rank": 1, "decoded_token": "h"}}])";
  const auto whole = answer(parse(R"("prompt_logprobs":1)"), "x");
  EXPECT_EQ(whole.at("choices").at(0).at("prompt_logprobs"), boost::json::parse(expected));
  EXPECT_TRUE(whole.at("choices").at(0).at("logprobs").is_null());
  EXPECT_EQ(whole.at("choices").at(0).at("text"), "x");
  const auto chat = answer(parse(R"("prompt_logprobs":0,"n":2)", ApiKind::kChat), "x");
  EXPECT_EQ(chat.at("prompt_logprobs").as_array().size(),
      std::string("<|user|>Hi\n<|assistant|>").size());
  EXPECT_EQ(chat.at("prompt_logprobs").at(1).as_object().size(), 1u);
  EXPECT_EQ(chat.at("choices").as_array().size(), 2u);
  EXPECT_FALSE(chat.at("choices").at(0).as_object().contains("prompt_logprobs"));
}

TEST_F(LogprobsApi, NoTokensAtAll) {
  const auto status = refusal(R"("max_tokens":0)");
  EXPECT_EQ(status.param, "max_tokens");
  EXPECT_NE(status.message.find("echo"), std::string::npos);
  EXPECT_EQ(refusal(R"("max_tokens":0)", ApiKind::kChat).param, "max_tokens");
  const ApiCall call = parse(R"("echo":true,"max_tokens":0,"logprobs":1)");
  EXPECT_EQ(call.choices[0].request.max_tokens, 1);
  for (const FinishReason finish : {FinishReason::kLength, FinishReason::kStop}) {
    const auto whole = answer(call, "x", finish);
    EXPECT_EQ(whole.at("choices").at(0).at("text"), "Hi");
    EXPECT_EQ(whole.at("choices").at(0).at("finish_reason"), "length");
    EXPECT_EQ(
        whole.at("choices").at(0).at("logprobs").at("tokens"), boost::json::parse(R"(["H","i"])"));
    EXPECT_EQ(whole.at("usage").at("completion_tokens"), 0);
  }
}

TEST_F(LogprobsApi, AStreamBeginsWithTheEcho) {
  const auto said = answer(parse(R"("echo":true,"logprobs":0,"stream":true,"stop":["x!"])"), "x");
  const std::string text(said.as_string());
  EXPECT_EQ(text.find("data: "), 0u);
  EXPECT_NE(text.find(R"("text":"Hix")"), std::string::npos) << text;
  EXPECT_NE(text.find(R"("token_logprobs":[null,)"), std::string::npos) << text;
}

TEST_F(LogprobsApi, BiasesOfAllFieldsAreOneList) {
  const auto biases = [&](const std::string& fields) {
    const Request request = parse(fields).choices[0].request;
    EXPECT_EQ(request.sampling.only_listed, fields.find("allowed") != std::string::npos);
    return request.logit_bias;
  };
  EXPECT_EQ(biases(R"("logit_bias":{})"), Biases());
  EXPECT_EQ(biases(R"("logit_bias":{"66":-100,"0":100.0,"7":0.5})"),
      (Biases{{0, 100}, {7, 0.5f}, {66, -100}}));
  EXPECT_EQ(biases(R"("allowed_token_ids":[9,3,9])"), (Biases{{3, 0}, {9, 0}}));
  EXPECT_EQ(
      biases(R"("allowed_token_ids":[9,3],"logit_bias":{"3":2,"4":5})"), (Biases{{3, 2}, {9, 0}}));
  EXPECT_EQ(biases(R"("bad_words":["A"],"logit_bias":{"65":3})"), (Biases{{65, kForbidden}}));
  EXPECT_EQ(biases(R"("allowed_token_ids":[65,66],"bad_words":["A"])"), (Biases{{66, 0}}));
}

TEST_F(LogprobsApi, BiasesThatAreRefused) {
  const std::pair<const char*, std::vector<const char*>> cases[] = {
      {"logit_bias", {"5", "[]", "\"x\"", R"({"a":1})", R"({"-1":1})", R"({"01":1})", R"({"+1":1})",
                         R"({"1.0":1})", R"({"":1})", R"({"1 ":1})", R"({"260":1})",
                         R"({"2147483648":1})", R"({"99999999999999999999":1})", R"({"5":101})",
                         R"({"5":-100.5})", R"({"5":null})", R"({"5":"1"})"}},
      {"allowed_token_ids", {"5", "{}", "[-1]", "[260]", "[1.5]", "[\"1\"]", "[null]"}},
      {"bad_words", {"\"x\"", "[1]", "[\"\"]", "[\"several tokens\"]", "{}"}}};
  for (const auto& [name, values] : cases) {
    for (const char* value : values) {
      for (const ApiKind kind : {ApiKind::kChat, ApiKind::kCompletion}) {
        const Status status = refusal(fmt::format("\"{}\":{}", name, value), kind);
        EXPECT_EQ(status.code, ErrorCode::kInvalidArgument) << name << " " << value;
        EXPECT_EQ(status.param, name) << value;
      }
    }
  }
  EXPECT_EQ(refusal(R"("allowed_token_ids":[65],"bad_words":["A"])").param, "allowed_token_ids");
  model_.vocab_size = 5000;
  std::string many = "{\"0\":1";
  for (int i = 1; i < kMaxLogitBias; ++i) many += ",\"" + std::to_string(i) + "\":1";
  EXPECT_EQ(refusal("\"logit_bias\":" + many + "}").message, "");
  EXPECT_EQ(refusal("\"logit_bias\":" + many + ",\"4000\":1}").param, "logit_bias");
  Request made;
  made.prompt = {1};
  made.logit_bias = {{5000, 1}};
  EXPECT_THROW(validate(made, model_), RequestError);
}

}  // namespace
}  // namespace millrace
