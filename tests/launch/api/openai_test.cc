#include "launch/api/openai.h"

#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <set>

#include "tests/launch/test_model.h"

namespace millrace {
namespace {

constexpr const char* kChat = R"({"messages":[{"role":"user","content":"Hi"}])";
constexpr const char* kCompletion = R"({"prompt":"Hi")";

class OpenAi : public ::testing::Test {
 protected:
  // `fields` continues the smallest valid body: R"("n":2)".
  ApiCall parse(ApiKind kind, const std::string& fields) {
    const std::string start = kind == ApiKind::kChat ? kChat : kCompletion;
    return parse_call(kind, start + (fields.empty() ? "}" : "," + fields + "}"), model_);
  }
  Status refusal(ApiKind kind, const std::string& fields) {
    try {
      parse(kind, fields);
      return {};
    } catch (const RequestError& error) {
      EXPECT_FALSE(error.status().message.empty());
      return error.status();
    }
  }
  Status refusal_of_body(ApiKind kind, const std::string& body) {
    try {
      parse_call(kind, body, model_);
      return {};
    } catch (const RequestError& error) {
      return error.status();
    }
  }
  std::string text(const std::vector<int32_t>& ids) { return model_.tokenizer->decode(ids, false); }

  ModelContext model_ = test_model();
};

struct NumericField {
  const char* name;
  bool chat, completion;
  std::vector<const char*> good, bad;
};

TEST_F(OpenAi, EveryNumericFieldHoldsItsRange) {
  const std::vector<NumericField> fields = {
      {"temperature", true, true, {"0", "2", "0.7", "1e-30"}, {"-1", "-0.001", "2.001", "3"}},
      {"top_p", true, true, {"0", "1", "0.5"}, {"-1", "1.001", "2"}},
      {"min_p", true, true, {"0", "1", "0.5"}, {"-1", "-0.001", "1.001", "2"}},
      {"top_k", true, true, {"-1", "0", "1", "2147483647"}, {"-2", "2147483648", "1.5"}},
      {"repetition_penalty", true, true, {"0.01", "1", "100"}, {"-1", "0", "0.009", "101"}},
      {"presence_penalty", true, true, {"-2", "2", "-1"}, {"-3", "-2.001", "2.001", "3"}},
      {"frequency_penalty", true, true, {"-2", "2", "-1"}, {"-3", "-2.001", "2.001", "3"}},
      {"max_tokens", true, true, {"1", "200", "5.0"}, {"-1", "0", "257", "2147483648", "1.5"}},
      {"max_completion_tokens", true, false, {"1", "200"}, {"-1", "0", "257", "2147483648"}},
      {"min_tokens", true, true, {"0", "16"}, {"-1", "257", "2147483648"}},
      {"n", true, true, {"1", "128"}, {"-1", "0", "129"}},
      {"seed", true, true, {"-9223372036854775808", "9223372036854775807", "-1"}, {"0.5"}},
      {"logprobs", false, true, {"0", "20"}, {"-1", "21"}},
      {"top_logprobs", true, false, {"0", "20"}, {"-1", "21"}},
  };
  for (const NumericField& field : fields) {
    std::vector<std::string> bad(field.bad.begin(), field.bad.end());
    for (const char* wrong :
        {"NaN", "Infinity", "1e400", "9223372036854775808", "1e30", "\"1\"", "[1]", "{}", "true"})
      bad.push_back(wrong);
    for (const ApiKind kind : {ApiKind::kChat, ApiKind::kCompletion}) {
      if (!(kind == ApiKind::kChat ? field.chat : field.completion)) continue;
      const std::string key = "\"" + std::string(field.name) + "\":";
      const std::string with =
          std::string(field.name) == "top_logprobs" ? "\"logprobs\":true," : "";
      for (const std::string& value : bad) {
        const Status status = refusal(kind, with + key + value);
        EXPECT_FALSE(status.ok()) << field.name << " = " << value;
        EXPECT_EQ(http_status(status.code), 400) << field.name << " = " << value;
        // What is no JSON at all has no field to name.
        const bool is_json = value != "NaN" && value != "Infinity" && value != "1e400";
        EXPECT_EQ(status.param, is_json ? field.name : "") << value;
      }
      for (const char* value : field.good)
        EXPECT_EQ(refusal(kind, with + key + value).message, "") << field.name << " = " << value;
      EXPECT_EQ(refusal(kind, with + key + "null").message, "") << field.name;
    }
  }
}

TEST_F(OpenAi, ReadsSamplingAndLimits) {
  const ApiCall call =
      parse(ApiKind::kChat, R"("temperature":0.5,"top_p":0.25,"top_k":7,"min_p":0.125,
      "repetition_penalty":1.5,"presence_penalty":-1,"frequency_penalty":2,"seed":-5,"n":2,
      "max_tokens":9,"max_completion_tokens":10,"min_tokens":3,"logprobs":true,"top_logprobs":4,
      "stop":["a","b"],"stop_token_ids":[65],"stream":true,"stream_options":{"include_usage":true},
      "include_stop_str_in_output":true,"skip_special_tokens":false,"return_token_ids":true)");
  ASSERT_EQ(call.choices.size(), 2u);
  const Request& request = call.choices[0].request;
  SamplingParams expected;
  expected.temperature = 0.5f;
  expected.top_p = 0.25f;
  expected.top_k = 7;
  expected.min_p = 0.125f;
  expected.repetition_penalty = 1.5f;
  expected.presence_penalty = -1;
  expected.frequency_penalty = 2;
  expected.seed = static_cast<uint64_t>(-5);
  expected.num_logprobs = 4;
  EXPECT_EQ(request.sampling, expected);
  ++expected.seed;
  EXPECT_EQ(call.choices[1].request.sampling, expected);
  EXPECT_EQ(request.max_tokens, 10);
  EXPECT_EQ(request.min_tokens, 3);
  EXPECT_EQ(request.stop_token_ids, (std::vector<int32_t>{65, kEos}));
  EXPECT_EQ(call.stop, (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(call.stream && call.include_usage && call.include_stop_str_in_output);
  EXPECT_TRUE(call.return_token_ids);
  EXPECT_FALSE(call.skip_special_tokens);
  const std::string prompt = "<|user|>Hi\n<|assistant|>";
  EXPECT_EQ(text(request.prompt), prompt);
  EXPECT_EQ(text(call.choices[0].prompt_tail), prompt.substr(prompt.size() - 8));
  EXPECT_EQ(call.prompt_tokens, static_cast<int32_t>(prompt.size()));  // once, not n times
}

TEST_F(OpenAi, Defaults) {
  const ApiCall chat = parse(ApiKind::kChat, "");
  EXPECT_EQ(chat.choices[0].request.max_tokens, 256 - chat.prompt_tokens);
  EXPECT_EQ(chat.choices[0].request.sampling.temperature, 1.0f);
  EXPECT_EQ(chat.choices[0].request.sampling.num_logprobs, -1);
  EXPECT_EQ(chat.choices[0].request.stop_token_ids, std::vector<int32_t>{kEos});
  const ApiCall completion = parse(ApiKind::kCompletion, "");
  EXPECT_EQ(completion.choices[0].request.max_tokens, 16);
  EXPECT_EQ(text(completion.choices[0].request.prompt), "Hi");
  EXPECT_TRUE(
      parse(ApiKind::kChat, R"("ignore_eos":true)").choices[0].request.stop_token_ids.empty());
  EXPECT_EQ(
      parse(ApiKind::kChat, R"("temperature":1e-7)").choices[0].request.sampling.temperature, 0);
  EXPECT_GT(parse(ApiKind::kChat, R"("top_p":0)").choices[0].request.sampling.top_p, 0);
}

TEST_F(OpenAi, SeedlessRequestsGetDifferentSeeds) {
  std::set<uint64_t> seeds;
  for (int i = 0; i < 8; ++i)
    for (const auto& choice : parse(ApiKind::kChat, R"("n":2)").choices)
      seeds.insert(choice.request.sampling.seed);
  EXPECT_EQ(seeds.size(), 16u);
}

TEST_F(OpenAi, UnsupportedFieldsAreRefusedByName) {
  const std::vector<std::pair<const char*, const char*>> chat = {
      {"tools", R"([{"type":"function","function":{"name":"f"}}])"},
      {"tool_choice", "\"required\""}, {"functions", "[{}]"},
      {"response_format", R"({"type":"json_object"})"}, {"best_of", "2"},
      {"audio", R"({"voice":"x"})"}, {"modalities", R"(["text","audio"])"},
      {"prediction", R"({"type":"content"})"}, {"chat_template", "\"{{ 1 }}\""},
      {"chat_template_kwargs", R"({"chat_template":"x"})"}, {"use_beam_search", "true"},
      {"truncate_prompt_tokens", "5"}, {"structured_outputs", R"({"regex":"a"})"},
      {"priority", "1"}, {"echo", "true"}, {"stream_options.include_obfuscation", ""}};
  for (const auto& [name, value] : chat) {
    const bool nested = std::string(value).empty();
    const std::string fields =
        nested ? R"("stream":true,"stream_options":{"include_obfuscation":true})"
               : "\"" + std::string(name) + "\":" + value;
    const Status status = refusal(ApiKind::kChat, fields);
    EXPECT_EQ(status.code, ErrorCode::kInvalidArgument) << name;
    EXPECT_EQ(status.param, name);
  }
  EXPECT_EQ(refusal(ApiKind::kCompletion, R"("suffix":"x")").param, "suffix");
  EXPECT_EQ(refusal(ApiKind::kCompletion, R"("best_of":2)").param, "best_of");
}

TEST_F(OpenAi, APriorityOnlyWhereItIsAllowedAndLowerGoesFirst) {
  EXPECT_EQ(refusal(ApiKind::kCompletion, R"("priority":-1)").param, "priority");
  model_.allow_priority = true;
  const auto priority = [&](const std::string& value) {
    return parse(ApiKind::kCompletion, "\"priority\":" + value).choices[0].request.priority;
  };
  EXPECT_EQ(priority("-3"), 3);
  EXPECT_EQ(priority("2147483647"), -2147483647);
  EXPECT_EQ(refusal(ApiKind::kChat, R"("priority":2147483648)").param, "priority");
}

TEST_F(OpenAi, StrictFieldsRefuseUnknownOnes) {
  EXPECT_EQ(refusal(ApiKind::kChat, R"("temprature":0)").message, "");
  model_.strict_fields = true;
  EXPECT_EQ(refusal(ApiKind::kChat, R"("temprature":0)").param, "temprature");
  EXPECT_EQ(refusal(ApiKind::kChat, R"("a\nb":0)").param, "a?b");
  EXPECT_EQ(refusal(ApiKind::kChat, R"("user":"u","temperature":0)").message, "");
  EXPECT_EQ(refusal(ApiKind::kCompletion, R"("messages":[])").param, "messages");
}

TEST_F(OpenAi, ValuesThatAskForNothingPass) {
  EXPECT_EQ(refusal(ApiKind::kChat, R"("tools":[],"tool_choice":"auto","functions":null,
      "parallel_tool_calls":true,"response_format":{"type":"text"},"logit_bias":{},
      "prompt_logprobs":null,"best_of":1,"audio":null,"modalities":["text"],"user":"u",
      "metadata":{"a":"b"},"store":false,"service_tier":"auto","priority":0,"length_penalty":1.0,
      "use_beam_search":false,"echo":false,"stop":null,"logprobs":false,"top_logprobs":0,
      "something_new":{"x":[1]},"stream_options":null,"model":"test-model","cache_salt":"s")")
                .message,
      "");
  EXPECT_EQ(refusal(ApiKind::kCompletion, R"("suffix":null,"best_of":1,"suffix2":1)").message, "");
}

TEST_F(OpenAi, OneSaltIsOneNumberAndOthersAreOthers) {
  const auto salt = [&](const std::string& fields) {
    return parse(ApiKind::kCompletion, fields).choices[0].request.cache_salt;
  };
  const std::string longest(128, '~');
  EXPECT_EQ(salt(""), 0u);
  EXPECT_EQ(salt(R"("cache_salt":null)"), 0u);
  EXPECT_NE(salt(R"("cache_salt":"a")"), 0u);
  EXPECT_EQ(salt(R"("cache_salt":"a")"), salt(R"("cache_salt":"a")"));
  EXPECT_NE(salt(R"("cache_salt":"a")"), salt(R"("cache_salt":"b")"));
  EXPECT_NE(salt("\"cache_salt\":\"" + longest + "\""), 0u);
  for (const std::string& wrong : {std::string(R"("")"), std::string("5"), std::string(R"(["a"])"),
           std::string(R"("a\nb")"), std::string("\"\u00e9\""), "\"" + longest + "~\""})
    EXPECT_EQ(refusal(ApiKind::kChat, "\"cache_salt\":" + wrong).param, "cache_salt") << wrong;
}

TEST_F(OpenAi, StopsAndOptionsAreHeldToTheirShapes) {
  const auto refused = [&](const std::string& fields, const std::string& param) {
    EXPECT_EQ(refusal(ApiKind::kChat, fields).param, param) << fields;
  };
  std::string sixteen = "\"a\"";
  for (int i = 1; i < 16; ++i) sixteen += ",\"a\"";
  EXPECT_EQ(refusal(ApiKind::kChat, "\"stop\":[" + sixteen + "]").message, "");
  refused("\"stop\":[" + sixteen + ",\"a\"]", "stop");
  EXPECT_EQ(refusal(ApiKind::kChat, "\"stop\":\"" + std::string(1024, 'a') + "\"").message, "");
  refused("\"stop\":\"" + std::string(1025, 'a') + "\"", "stop");
  refused(R"("stop":"")", "stop");
  refused(R"("stop":[1])", "stop");
  refused(R"("stop":{})", "stop");
  for (const char* id : {"-1", "257", "2147483648", "\"5\"", "1.5"})
    refused("\"stop_token_ids\":[" + std::string(id) + "]", "stop_token_ids");
  EXPECT_EQ(refusal(ApiKind::kChat, R"("stop_token_ids":[0,256])").message, "");
  refused(R"("stream":1)", "stream");
  refused(R"("stream":"true")", "stream");
  refused(R"("stream_options":{"include_usage":true})", "stream_options");
  refused(R"("stream":true,"stream_options":{"include_usage":1})", "stream_options.include_usage");
  refused(R"("top_logprobs":2)", "top_logprobs");
  refused(R"("min_tokens":5,"max_tokens":4)", "min_tokens");
}

TEST_F(OpenAi, TheModelMustBeTheServedOne) {
  EXPECT_EQ(refusal(ApiKind::kChat, R"("model":"test-model")").message, "");
  const Status status = refusal(ApiKind::kChat, R"("model":"gpt-4")");
  EXPECT_EQ(http_status(status.code), 404);
  const auto body = boost::json::parse(error_json(status)).at("error");
  EXPECT_EQ(body.at("code"), "model_not_found");
  EXPECT_EQ(body.at("param"), "model");
  EXPECT_EQ(refusal(ApiKind::kChat, R"("model":5)").param, "model");
}

TEST_F(OpenAi, MessagesAreCheckedAndFlattened) {
  const auto chat = [](const std::string& messages) { return "{\"messages\":" + messages + "}"; };
  const ApiCall call =
      parse_call(ApiKind::kChat, chat(R"([{"role":"developer","content":"Be brief."},
               {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
               {"role":"assistant","content":null,"tool_calls":[],"refusal":null},
               {"role":"user","content":"<eos>","name":"N"}])"),
          model_);
  EXPECT_EQ(text(call.choices[0].request.prompt),
      "<|system|>Be brief.\n<|user|>a\nb\n<|assistant|>\n<|user|><eos>\n<|assistant|>");
  const std::vector<std::pair<const char*, const char*>> refused = {{"[]", "messages"},
      {"{}", "messages"}, {"\"Hi\"", "messages"}, {"null", "messages"}, {"[1]", "messages[0]"},
      {R"([{"content":"x"}])", "messages[0].role"},
      {R"([{"role":"robot","content":"x"}])", "messages[0].role"},
      {R"([{"role":"user"}])", "messages[0].content"},
      {R"([{"role":"user","content":null}])", "messages[0].content"},
      {R"([{"role":"user","content":5}])", "messages[0].content"},
      {R"([{"role":"user","content":"a"},{"role":"user","content":[5]}])",
          "messages[1].content[0]"},
      {R"([{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://x"}}]}])",
          "messages[0].content[0]"},
      {R"([{"role":"user","content":[{"type":"text"}]}])", "messages[0].content[0].text"},
      {R"([{"role":"assistant","tool_calls":[{}]}])", "messages[0].tool_calls"},
      {R"([{"role":"user","content":"a","name":[]}])", "messages[0].name"}};
  for (const auto& [messages, param] : refused)
    EXPECT_EQ(refusal_of_body(ApiKind::kChat, chat(messages)).param, param) << messages;
  std::string many = R"([{"role":"user","content":"a"})";
  for (int i = 0; i < 4096; ++i) many += R"(,{"role":"user","content":"a"})";
  EXPECT_EQ(refusal_of_body(ApiKind::kChat, chat(many + "]")).param, "messages");
}

TEST_F(OpenAi, PromptsComeInFourShapes) {
  const auto prompts = [&](const std::string& prompt, const std::string& more = "") {
    std::vector<std::string> texts;
    for (const auto& choice :
        parse_call(ApiKind::kCompletion, "{\"prompt\":" + prompt + more + "}", model_).choices)
      texts.push_back(text(choice.request.prompt));
    return texts;
  };
  using Texts = std::vector<std::string>;
  EXPECT_EQ(prompts(R"("ab")"), Texts{"ab"});
  EXPECT_EQ(prompts(R"(["ab","c"])"), (Texts{"ab", "c"}));
  EXPECT_EQ(prompts("[97,98]"), Texts{"ab"});
  EXPECT_EQ(prompts("[[97,98],[99]]"), (Texts{"ab", "c"}));
  EXPECT_EQ(prompts(R"(["ab","c"])", ",\"n\":2"), (Texts{"ab", "ab", "c", "c"}));
  for (const char* bad :
      {"\"\"", "[]", "[[]]", "[\"\"]", "5", "{}", "null", "true", "[97,\"a\"]", "[\"a\",97]",
          "[[97],\"a\"]", "[-1]", "[257]", "[2147483648]", "[97.5]", "[null]", "[[[97]]]", "[{}]"})
    EXPECT_EQ(refusal_of_body(ApiKind::kCompletion, "{\"prompt\":" + std::string(bad) + "}").param,
        "prompt")
        << bad;
  EXPECT_EQ(refusal_of_body(ApiKind::kCompletion, "{}").param, "prompt");
  std::string many = "[[97]";
  for (int i = 0; i < 1023; ++i) many += ",[97]";
  EXPECT_EQ(refusal_of_body(ApiKind::kCompletion, "{\"prompt\":" + many + "]}").message, "");
  EXPECT_EQ(refusal_of_body(ApiKind::kCompletion, "{\"prompt\":" + many + "],\"n\":2}").param, "n");
}

TEST_F(OpenAi, EchoKeepsThePromptsText) {
  EXPECT_EQ(parse(ApiKind::kCompletion, R"("echo":true)").choices[0].echo, "Hi");
  EXPECT_EQ(parse(ApiKind::kCompletion, "").choices[0].echo, "");
  EXPECT_EQ(parse_call(ApiKind::kCompletion, R"({"prompt":[72,105],"echo":true})", model_)
                .choices[0]
                .echo,
      "Hi");
}

TEST_F(OpenAi, APromptBeyondTheContextNamesBothNumbers) {
  const auto completion = [&](size_t length, const std::string& more) {
    return refusal_of_body(
        ApiKind::kCompletion, "{\"prompt\":\"" + std::string(length, 'a') + "\"" + more + "}");
  };
  EXPECT_EQ(completion(255, "").message, "");  // one token is left; the default shrinks to it
  for (const size_t length : {256, 300, 100'000}) {
    const Status status = completion(length, "");
    EXPECT_EQ(status.code, ErrorCode::kContextLengthExceeded);
    EXPECT_EQ(status.param, "prompt");
    EXPECT_NE(status.message.find("256"), std::string::npos);
  }
  EXPECT_NE(completion(300, "").message.find("300"), std::string::npos);
  EXPECT_EQ(completion(200, ",\"max_tokens\":56").message, "");
  const Status status = completion(200, ",\"max_tokens\":57");
  EXPECT_EQ(status.param, "max_tokens");
  EXPECT_NE(status.message.find("200"), std::string::npos);
  EXPECT_NE(status.message.find("57"), std::string::npos);
  EXPECT_EQ(
      boost::json::parse(error_json(status)).at("error").at("code"), "context_length_exceeded");
  EXPECT_EQ(boost::json::parse(error_json(status)).at("error").at("type"), "invalid_request_error");
}

TEST_F(OpenAi, BodiesThatAreNoCall) {
  for (const char* body : {"", "[]", "5", "\"x\"", "{\"messages\":", "{}"})
    EXPECT_EQ(refusal_of_body(ApiKind::kChat, body).code, ErrorCode::kInvalidArgument) << body;
  EXPECT_FALSE(refusal(ApiKind::kChat, R"("n":1,"n":1)").ok());
}

TEST_F(OpenAi, AModelWithoutATemplateRefusesChats) {
  model_.chat_template = nullptr;
  EXPECT_EQ(refusal(ApiKind::kChat, "").param, "messages");
}

TEST_F(OpenAi, ValidateHoldsRequestsMadeWithoutJson) {
  Request good;
  good.prompt = {1, 2, 3};
  EXPECT_NO_THROW(validate(good, model_));
  const auto refuse = [&](auto change) {
    Request request = good;
    change(request);
    EXPECT_THROW(validate(request, model_), RequestError);
  };
  refuse([](Request& r) { r.prompt = {}; });
  refuse([](Request& r) { r.prompt = {-1}; });
  refuse([](Request& r) { r.prompt = {257}; });
  refuse([](Request& r) { r.prompt.assign(256, 1); });
  refuse([](Request& r) { r.max_tokens = 0; });
  refuse([](Request& r) { r.max_tokens = 254; });
  refuse([](Request& r) { r.max_tokens = 0x7fffffff; });
  refuse([](Request& r) { r.min_tokens = 17; });
  refuse([](Request& r) { r.stop_token_ids = {257}; });
  refuse([](Request& r) { r.sampling.temperature = NAN; });
  refuse([](Request& r) { r.sampling.top_p = 0; });
  refuse([](Request& r) { r.sampling.top_k = -1; });
  refuse([](Request& r) { r.sampling.num_logprobs = 21; });
  refuse([](Request& r) { r.sampling.num_prompt_logprobs = 21; });
}

TEST_F(OpenAi, ErrorsAndModelsAsJson) {
  EXPECT_EQ(error_json({ErrorCode::kInvalidArgument, "No \"x\".", "n"}),
      R"({"error":{"message":"No \"x\".","type":"invalid_request_error","param":"n","code":null}})");
  EXPECT_EQ(error_json({ErrorCode::kOverloaded, "Full.", ""}),
      R"({"error":{"message":"Full.","type":"server_error","param":null,"code":"overloaded"}})");
  EXPECT_EQ(models_json(model_),
      R"({"object":"list","data":[{"id":"test-model","object":"model","created":1700000000,)"
      R"("owned_by":"millrace","root":"test-model","parent":null,"max_model_len":256}]})");
}

}  // namespace
}  // namespace millrace
