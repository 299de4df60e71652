// Keys: who is let in, where, and how much each may ask.
#include "launch/gateway/keys.h"

#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <filesystem>
#include <fstream>
#include <memory>

#include "engine/base/status.h"
#include "launch/gateway/server.h"
#include "tests/launch/fake_engine.h"
#include "tests/launch/gateway/http_client.h"
#include "tests/launch/test_model.h"

namespace millrace {
namespace {

class Keys : public ::testing::Test {
 protected:
  ~Keys() override { std::filesystem::remove(path_); }
  std::string file(const std::string& text) {
    std::ofstream(path_, std::ios::binary) << text;
    return path_;
  }
  void start() {
    config_.port = 0;
    server_ = std::make_unique<Server>(config_);
    server_->set_engine(engine_, test_model());
    server_->start();
  }
  HttpAnswer ask(const std::string& method, const std::string& path, const std::string& key,
      const std::string& body = R"({"prompt":"a"})") {
    HttpClient client(server_->port());
    const std::string fields = key.empty() ? "" : "Authorization: Bearer " + key + "\r\n";
    method == "GET" ? client.get(path, fields) : client.post(path, body, fields);
    return client.read_answer();
  }
  std::string code(const HttpAnswer& answer) {
    return std::string(boost::json::parse(answer.body).at("error").at("code").as_string());
  }
  void answer_all() {
    engine_.on_submit = [](FakeEngine& engine, RequestId id, const Request&) {
      engine.emit(id, "b", FinishReason::kLength);
    };
  }

  const std::string path_ = ::testing::TempDir() + "millrace_keys_test";
  ServerConfig config_;
  FakeEngine engine_;
  std::unique_ptr<Server> server_;
};

TEST_F(Keys, AreReadFromAFile) {
  const KeyRing keys("first", file("# ours\n\n  second \r\nthird"));
  EXPECT_EQ(keys.size(), 3u);
  EXPECT_EQ(keys.find("Bearer first"), 0u);
  EXPECT_EQ(keys.find("bearer second"), 1u);
  EXPECT_EQ(keys.find("Bearer third"), 2u);
  for (const char* wrong :
      {"", "first", "Bearer ", "Bearer", "Basic first", "Bearer firs", "Bearer first ",
          "Bearer  first", "Bearer FIRST", "Bearer # ours", "Bearer first,second"})
    EXPECT_FALSE(keys.find(wrong)) << wrong;
  EXPECT_TRUE(KeyRing("", "").empty());
}

TEST_F(Keys, ABadFileIsToldWithoutItsKeys) {
  const auto refusal = [&](const std::string& text) -> std::string {
    try {
      KeyRing("", file(text));
      return "";
    } catch (const Error& error) {
      EXPECT_EQ(error.exit_code(), ExitCode::kInput);
      return error.what();
    }
  };
  EXPECT_NE(refusal("").find(path_), std::string::npos);
  EXPECT_NE(refusal("# nothing\n\n").find(path_), std::string::npos);
  const std::string blank = refusal("good\nsecret word\n");
  EXPECT_NE(blank.find("line 2"), std::string::npos);
  EXPECT_EQ(blank.find("secret"), std::string::npos);
  EXPECT_NE(refusal(std::string(513, 'k')).find("line 1"), std::string::npos);
  EXPECT_NE(refusal("caf\xC3\xA9").find("line 1"), std::string::npos);
  EXPECT_THROW(KeyRing("", "/nowhere/keys"), Error);
}

TEST_F(Keys, EverythingButHealthNeedsOne) {
  config_.api_key = "secret";
  start();
  answer_all();
  for (const char* path : {"/live", "/ready", "/health", "/ping"})
    EXPECT_EQ(ask("GET", path, "").status, 200) << path;
  for (const char* path :
      {"/v1/models", "/v1/models/test-model", "/metrics", "/load", "/version", "/nowhere"}) {
    for (const char* key : {"", "wrong", "secret2", "secre"}) {
      const HttpAnswer answer = ask("GET", path, key);
      EXPECT_EQ(answer.status, 401) << path;
      EXPECT_EQ(code(answer), "invalid_api_key");
      EXPECT_TRUE(answer.has("WWW-Authenticate: Bearer"));
    }
    EXPECT_NE(ask("GET", path, "secret").status, 401) << path;
  }
  for (const char* path : {"/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"})
    EXPECT_EQ(ask("POST", path, "wrong").status, 401) << path;
  EXPECT_EQ(engine_.num_submitted(), 0u);
  EXPECT_EQ(ask("POST", "/v1/completions", "secret").status, 200);
}

TEST_F(Keys, AStrangersBodyIsNotWaitedFor) {
  config_.api_key = "secret";
  start();
  HttpClient client(server_->port());
  client.send(
      "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
      "Expect: 100-continue\r\nContent-Length: 30000000\r\n\r\n");
  const HttpAnswer answer = client.read_answer();
  EXPECT_EQ(answer.status, 401);
  EXPECT_TRUE(answer.has("Connection: close"));
  EXPECT_TRUE(client.at_end());
}

TEST_F(Keys, OneKeyHasItsShareOfOpenCallsAndGetsItBack) {
  config_.api_key_file = file("alice\nbob\n");
  config_.limits.calls_per_key = 1;
  start();
  HttpClient alice(server_->port());
  alice.post("/v1/completions", R"({"prompt":"a"})", "Authorization: Bearer alice\r\n");
  engine_.wait_submitted(1);
  const HttpAnswer refused = ask("POST", "/v1/completions", "alice");
  EXPECT_EQ(refused.status, 429);
  EXPECT_EQ(code(refused), "rate_limit_exceeded");
  EXPECT_TRUE(refused.has("Retry-After: 1"));
  EXPECT_EQ(ask("POST", "/v1/completions", "bob", R"({"prompt":""})").status, 400);
  engine_.emit(1, "b", FinishReason::kLength);
  EXPECT_EQ(alice.read_answer().status, 200);
  answer_all();
  // The call ends when its answer is written, which the client may see a moment before.
  int status = 429;
  for (int i = 0; i < 1000 && status == 429; ++i)
    status = ask("POST", "/v1/completions", "alice").status;
  EXPECT_EQ(status, 200);
}

TEST_F(Keys, OneKeyBeginsSoManyCallsAMinute) {
  config_.api_key_file = file("alice\nbob\n");
  config_.limits.calls_per_minute = 2;
  start();
  answer_all();
  EXPECT_EQ(ask("POST", "/v1/completions", "alice").status, 200);
  EXPECT_EQ(ask("POST", "/tokenize", "alice").status, 200);
  const HttpAnswer refused = ask("POST", "/v1/completions", "alice");
  EXPECT_EQ(refused.status, 429);
  EXPECT_TRUE(refused.has("Retry-After: 30"));  // half a minute for one call
  EXPECT_EQ(ask("POST", "/v1/completions", "bob").status, 200);
  EXPECT_EQ(ask("GET", "/v1/models", "alice").status, 200);  // not a call
}

}  // namespace
}  // namespace millrace
