// The server over a real socket and an engine that says what the test wants.
#include "launch/gateway/server.h"

#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <memory>
#include <thread>

#include "tests/launch/fake_engine.h"
#include "tests/launch/gateway/http_client.h"
#include "tests/launch/test_model.h"

namespace millrace {
namespace {

namespace json = boost::json;

constexpr const char* kChat = "/v1/chat/completions";
constexpr const char* kCompletions = "/v1/completions";

// The JSON of every event; "[DONE]" as a string.
std::vector<json::value> events(const std::string& body) {
  std::vector<json::value> all;
  for (size_t at = 0; at < body.size();) {
    const size_t end = body.find("\n\n", at);
    EXPECT_TRUE(body.compare(at, 6, "data: ") == 0 && end != std::string::npos) << body;
    if (end == std::string::npos) break;
    const std::string data = body.substr(at + 6, end - at - 6);
    all.push_back(data == "[DONE]" ? json::value(data) : json::parse(data));
    at = end + 2;
  }
  return all;
}

class ServerTest : public ::testing::Test {
 protected:
  void start(bool with_engine = true) {
    server_ = std::make_unique<Server>(config_);
    if (with_engine) server_->set_engine(engine_, test_model());
    server_->start();
  }
  static ServerConfig make_config() {
    ServerConfig config;
    config.port = 0;
    config.io_threads = 2;
    return config;
  }
  HttpAnswer get(const std::string& path) { return get_from(server_->port(), path); }
  HttpAnswer post(const std::string& path, const std::string& body) {
    return post_to(server_->port(), path, body);
  }
  json::value error_of(const HttpAnswer& answer) { return json::parse(answer.body).at("error"); }

  ServerConfig config_ = make_config();
  FakeEngine engine_;
  std::unique_ptr<Server> server_;
};

TEST_F(ServerTest, PlainRoutes) {
  start();
  for (const char* path : {"/health", "/ready", "/live", "/version", "/v1/models"}) {
    const HttpAnswer answer = get(path);
    EXPECT_EQ(answer.status, 200) << path;
    EXPECT_NE(answer.head.find("x-request-id: req-"), std::string::npos);
    EXPECT_TRUE(json::parse(answer.body).is_object());
  }
  EXPECT_EQ(json::parse(get("/v1/models").body).at("data").at(0).at("id"), "test-model");
  EXPECT_EQ(json::parse(get("/v1/models/test-model").body).at("object"), "model");
  EXPECT_EQ(error_of(get("/v1/models/other")).at("code"), "model_not_found");
}

TEST_F(ServerTest, ErrorsHaveOpenAisShape) {
  start();
  EXPECT_EQ(get("/nowhere").status, 404);
  EXPECT_EQ(error_of(get("/nowhere")).at("code"), "unknown_route");
  const HttpAnswer wrong = get(kChat);
  EXPECT_EQ(wrong.status, 405);
  EXPECT_TRUE(wrong.has("Allow: POST"));
  EXPECT_EQ(post(kChat, "{").status, 400);
  EXPECT_EQ(error_of(post(kChat, R"({"messages":[]})")).at("param"), "messages");
  EXPECT_EQ(error_of(post(kCompletions, R"({"prompt":"a","n":0})")).at("param"), "n");
  EXPECT_EQ(post(kCompletions, R"({"prompt":"a","model":"x"})").status, 404);
  HttpClient client(server_->port());
  client.send("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}");
  EXPECT_EQ(client.read_answer().status, 415);
  EXPECT_EQ(engine_.num_submitted(), 0u);
}

TEST_F(ServerTest, AConnectionIsKeptAndItsRequestIdEchoed) {
  start();
  HttpClient client(server_->port());
  client.get("/live", "X-Request-Id: mine-7\r\n");
  EXPECT_TRUE(client.read_answer().has("x-request-id: mine-7"));
  client.post(kCompletions, "{}");
  EXPECT_EQ(client.read_answer().status, 400);
  client.get("/live");
  client.get("/health");  // sent before the answer to the first has come
  EXPECT_EQ(client.read_answer().status, 200);
  EXPECT_EQ(client.read_answer().status, 200);
  client.get("/live", "Connection: close\r\n");
  EXPECT_TRUE(client.read_answer().has("Connection: close"));
  EXPECT_TRUE(client.at_end());
}

TEST_F(ServerTest, MalformedHttpIsAnsweredAndTheConnectionEnds) {
  start();
  HttpClient client(server_->port());
  client.send(
      "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\nGET /live HTTP/1.1\r\nHost: localhost\r\n\r\n");
  const HttpAnswer answer = client.read_answer();
  EXPECT_EQ(answer.status, 400);
  EXPECT_TRUE(answer.has("Connection: close"));
  EXPECT_TRUE(client.at_end());
}

TEST_F(ServerTest, AnswersAChat) {
  start();
  HttpClient client(server_->port());
  client.post(kChat, R"({"messages":[{"role":"user","content":"Hi"}],"seed":3})");
  engine_.wait_submitted(1);
  EXPECT_EQ(engine_.request(1).sampling.seed, 3u);
  engine_.emit(1, "Hel");
  engine_.emit(1, "lo");
  Emission last{1, {{kEos, 0, {}}}, FinishReason::kStop, {}};
  engine_.emit(last);
  const HttpAnswer answer = client.read_answer();
  EXPECT_EQ(answer.status, 200);
  const json::value body = json::parse(answer.body);
  EXPECT_EQ(body.at("object"), "chat.completion");
  EXPECT_TRUE(std::string_view(body.at("id").as_string()).starts_with("chatcmpl-"));
  EXPECT_EQ(body.at("choices").at(0).at("message").at("content"), "Hello");
  EXPECT_EQ(body.at("choices").at(0).at("finish_reason"), "stop");
  EXPECT_EQ(body.at("usage").at("completion_tokens"), 6);
  client.get("/live");  // the connection is still good
  EXPECT_EQ(client.read_answer().status, 200);
}

TEST_F(ServerTest, StreamsAChat) {
  start();
  HttpClient client(server_->port());
  client.post(kChat, R"({"messages":[{"role":"user","content":"Hi"}],"stream":true,
                         "stream_options":{"include_usage":true}})");
  engine_.wait_submitted(1);
  engine_.emit(1, "Hel");
  const HttpAnswer head = client.read_head();  // before the end of the answer
  EXPECT_EQ(head.status, 200);
  EXPECT_TRUE(head.has("Content-Type: text/event-stream"));
  std::string body = client.read_chunk();
  EXPECT_NE(body.find("Hel"), std::string::npos);
  engine_.emit(1, "lo", FinishReason::kLength);
  for (std::string piece = client.read_chunk(); !piece.empty(); piece = client.read_chunk())
    body += piece;
  const auto all = events(body);
  ASSERT_EQ(all.size(), 4u);
  EXPECT_EQ(all[0].at("choices").at(0).at("delta").at("role"), "assistant");
  EXPECT_EQ(all[1].at("choices").at(0).at("delta").at("content"), "lo");
  EXPECT_EQ(all[1].at("choices").at(0).at("finish_reason"), "length");
  EXPECT_TRUE(all[1].at("usage").is_null());
  EXPECT_TRUE(all[2].at("choices").as_array().empty());
  EXPECT_EQ(all[2].at("usage").at("completion_tokens"), 5);
  EXPECT_EQ(all[3], "[DONE]");
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(all[i].at("id"), all[0].at("id"));
    EXPECT_EQ(all[i].at("created"), all[0].at("created"));
  }
  client.get("/live");
  EXPECT_EQ(client.read_answer().status, 200);
}

TEST_F(ServerTest, StreamsToHttp10UntilTheConnectionEnds) {
  start();
  HttpClient client(server_->port());
  client.post(kCompletions, R"({"prompt":"a","stream":true})", "", "1.0");
  engine_.wait_submitted(1);
  engine_.emit(1, "b", FinishReason::kLength);
  const HttpAnswer answer = client.read_answer();
  EXPECT_FALSE(answer.has("Transfer-Encoding: chunked"));
  EXPECT_EQ(events(answer.body).back(), "[DONE]");
}

TEST_F(ServerTest, SeveralChoicesInOneAnswer) {
  engine_.on_submit = [](FakeEngine& engine, RequestId id, const Request& request) {
    const std::string prompt(request.prompt.begin(), request.prompt.end());
    engine.emit(id, prompt + std::to_string(id), FinishReason::kLength);
  };
  start();
  const json::value body =
      json::parse(post(kCompletions, R"({"prompt":["a","b"],"n":2,"echo":true})").body);
  const json::array& choices = body.at("choices").as_array();
  ASSERT_EQ(choices.size(), 4u);
  const char* expected[] = {"aa1", "aa2", "bb3", "bb4"};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(choices[i].at("index"), i);
    EXPECT_EQ(choices[i].at("text"), expected[i]);
  }
  EXPECT_EQ(body.at("usage").at("prompt_tokens"), 2);
  EXPECT_EQ(body.at("usage").at("completion_tokens"), 8);
}

TEST_F(ServerTest, AStopStringCancelsInTheEngine) {
  start();
  HttpClient client(server_->port());
  client.post(kCompletions, R"({"prompt":"a","stop":"END"})");
  engine_.wait_submitted(1);
  engine_.emit(1, "text E");
  engine_.emit(1, "ND more");
  const json::value body = json::parse(client.read_answer().body);
  EXPECT_EQ(body.at("choices").at(0).at("text"), "text ");
  EXPECT_EQ(body.at("choices").at(0).at("finish_reason"), "stop");
  engine_.wait_cancelled(1);
}

TEST_F(ServerTest, ADisconnectCancelsWhateverTheClientWaitsFor) {
  start();
  for (const char* stream : {"false", "true"}) {
    const size_t before = engine_.num_submitted();
    HttpClient client(server_->port());
    client.post(kCompletions, R"({"prompt":["a","b"],"stream":)" + std::string(stream) + "}");
    engine_.wait_submitted(before + 2);
    if (stream == std::string("true")) {
      engine_.emit(before + 1, "x");
      client.read_head();
    }
    client.close();
    engine_.wait_cancelled(before + 2);  // no token is needed to see it
  }
}

TEST_F(ServerTest, EngineErrorsBeforeAndInTheMiddleOfAStream) {
  start();
  HttpClient client(server_->port());
  client.post(kCompletions, R"({"prompt":"a","stream":true})");
  engine_.wait_submitted(1);
  engine_.emit(1, "", FinishReason::kError, {ErrorCode::kOverloaded, "The queue is full.", ""});
  HttpAnswer answer = client.read_answer();
  EXPECT_EQ(answer.status, 503);
  EXPECT_NE(answer.head.find("Retry-After: "), std::string::npos);
  EXPECT_EQ(error_of(answer).at("code"), "overloaded");

  client.post(kCompletions, R"({"prompt":["a","b"],"stream":true})");
  engine_.wait_submitted(3);
  engine_.emit(2, "x");
  engine_.emit(2, "", FinishReason::kError, {ErrorCode::kInternal, "Non-finite logits.", ""});
  answer = client.read_answer();
  const auto all = events(answer.body);
  ASSERT_EQ(all.size(), 2u);  // the text, the error, no [DONE]
  EXPECT_EQ(all[1].at("error").at("message"), "Non-finite logits.");
  EXPECT_TRUE(client.at_end());
  engine_.wait_cancelled(1);  // the other choice
  EXPECT_EQ(engine_.cancelled(), std::vector<RequestId>{3});
}

TEST_F(ServerTest, LoadingUnhealthyAndFailed) {
  start(/*with_engine=*/false);
  EXPECT_EQ(get("/live").status, 200);
  for (const char* path : {"/health", "/v1/models", "/version"}) {
    EXPECT_EQ(get(path).status, 503);
    EXPECT_EQ(error_of(get(path)).at("code"), "loading");
  }
  server_->set_engine(engine_, test_model());
  EXPECT_EQ(get("/health").status, 200);
  engine_.set_healthy(false);
  EXPECT_EQ(get("/health").status, 503);
  engine_.set_healthy(true);
  server_->fail({ErrorCode::kUnavailable, "Rank 1 is gone.", ""});
  const HttpAnswer answer = post(kCompletions, R"({"prompt":"a"})");
  EXPECT_EQ(answer.status, 503);
  EXPECT_EQ(error_of(answer).at("message"), "Rank 1 is gone.");
  EXPECT_EQ(get("/live").status, 200);
}

TEST_F(ServerTest, DrainLetsOpenCallsEnd) {
  start();
  HttpClient open(server_->port()), idle(server_->port());
  open.post(kCompletions, R"({"prompt":"a","stream":true})");
  engine_.wait_submitted(1);
  engine_.emit(1, "one");
  open.read_head();
  idle.get("/live");
  idle.read_answer();
  std::thread drain([&] { server_->drain_and_stop(); });
  HttpAnswer refused;
  do {
    refused = get("/health");
  } while (refused.status == 200);
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(error_of(refused).at("code"), "draining");
  EXPECT_TRUE(refused.has("Connection: close"));
  EXPECT_EQ(post(kCompletions, R"({"prompt":"a"})").status, 503);
  engine_.emit(1, "two", FinishReason::kLength);
  std::string body;
  for (std::string piece = open.read_chunk(); !piece.empty(); piece = open.read_chunk())
    body += piece;
  EXPECT_EQ(events(body).back(), "[DONE]");
  drain.join();
  EXPECT_TRUE(idle.at_end());
  EXPECT_FALSE(HttpClient(server_->port()).connected());
}

TEST_F(ServerTest, ADrainsTimeoutEndsWhatIsLeftWithAnError) {
  config_.shutdown_timeout_s = 0;
  start();
  HttpClient streaming(server_->port()), waiting(server_->port());
  streaming.post(kCompletions, R"({"prompt":"a","stream":true})");
  engine_.wait_submitted(1);
  engine_.emit(1, "x");
  streaming.read_head();
  waiting.post(kCompletions, R"({"prompt":"a"})");
  engine_.wait_submitted(2);
  server_->drain_and_stop();
  EXPECT_EQ(waiting.read_answer().status, 503);
  std::string body;
  for (std::string piece = streaming.read_chunk(); !piece.empty(); piece = streaming.read_chunk())
    body += piece;
  EXPECT_TRUE(events(body).back().as_object().contains("error"));
  engine_.wait_cancelled(2);
}

TEST_F(ServerTest, TheDestructorCancelsAndIgnoresWhatComesLate) {
  start();
  HttpClient client(server_->port());
  client.post(kCompletions, R"({"prompt":"a","stream":true})");
  engine_.wait_submitted(1);
  Emission late{1, {{'x', 0, {}}}, FinishReason::kNone, {}};
  std::atomic<bool> stop{false};
  std::thread engine_thread([&] {
    while (!stop) engine_.emit(late);
  });
  server_.reset();
  stop = true;
  engine_thread.join();
  EXPECT_EQ(engine_.cancelled(), std::vector<RequestId>{1});
}

TEST_F(ServerTest, ATakenPortIsSaidAtOnce) {
  start();
  config_.port = server_->port();
  try {
    Server second(config_);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::kAddress);
    EXPECT_NE(std::string(error.what()).find("--port"), std::string::npos);
  }
  config_.host = "256.1.1.1";
  EXPECT_THROW(Server{config_}, Error);
}

}  // namespace
}  // namespace millrace
