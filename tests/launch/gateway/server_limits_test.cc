// What the server does not put up with: slow senders, slow readers, idle ones, too many.
#include <gtest/gtest.h>

#include <memory>
#include <thread>

#include "launch/gateway/server.h"
#include "tests/launch/fake_engine.h"
#include "tests/launch/gateway/http_client.h"
#include "tests/launch/test_model.h"

namespace millrace {
namespace {

using std::chrono::milliseconds;

// Logprobs make some fifty bytes of every token: the kernel's buffers are full soon.
constexpr const char* kWordyStream =
    R"({"prompt":"a","stream":true,"max_tokens":200,"logprobs":1})";

class ServerLimits : public ::testing::Test {
 protected:
  void start() {
    config_.port = 0;
    server_ = std::make_unique<Server>(config_);
    server_->set_engine(engine_, test_model());
    server_->start();
  }
  ServerConfig config_;
  FakeEngine engine_;
  std::unique_ptr<Server> server_;
};

TEST_F(ServerLimits, ASlowHeadIsTimedOut) {
  config_.limits.head_time = milliseconds(50);
  start();
  HttpClient silent(server_->port()), slow(server_->port());
  slow.send("GET /live HTTP/1.1\r\nHo");
  EXPECT_EQ(slow.read_answer().status, 408);
  EXPECT_TRUE(slow.at_end());
  EXPECT_TRUE(silent.at_end());  // it never began a request: nothing to answer
}

TEST_F(ServerLimits, ABodySlowerThanTheLeastRateIsTimedOut) {
  config_.limits.body_grace = milliseconds(50);
  start();
  HttpClient slow(server_->port());
  slow.send(
      "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
      "Content-Length: 100\r\n\r\n{");
  const HttpAnswer answer = slow.read_answer();
  EXPECT_EQ(answer.status, 408);
  EXPECT_TRUE(answer.has("Connection: close"));
}

TEST_F(ServerLimits, AnIdleConnectionIsClosed) {
  config_.limits.idle_time = milliseconds(50);
  start();
  HttpClient client(server_->port());
  client.get("/live");
  EXPECT_EQ(client.read_answer().status, 200);
  EXPECT_TRUE(client.at_end());
}

TEST_F(ServerLimits, AnAnswerThatTakesLongIsNoIdleConnection) {
  config_.limits.idle_time = config_.limits.head_time = milliseconds(30);
  start();
  HttpClient client(server_->port());
  client.post("/v1/completions", R"({"prompt":"a"})");
  engine_.wait_submitted(1);
  std::this_thread::sleep_for(milliseconds(150));
  engine_.emit(1, "b", FinishReason::kLength);
  EXPECT_EQ(client.read_answer().status, 200);
}

TEST_F(ServerLimits, ABodyThatIsTooLargeIsRefusedBeforeItIsRead) {
  config_.limits.body_bytes = 1000;
  start();
  HttpClient client(server_->port());
  client.send(
      "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
      "Content-Length: 1073741824\r\n\r\n");
  client.send(std::string(100'000, ' '));
  EXPECT_EQ(client.read_answer().status, 413);
}

TEST_F(ServerLimits, ABodyOfSeveralMegabytesComesThrough) {
  start();
  HttpClient client(server_->port());
  const std::string body = R"({"prompt":"a","user":")" + std::string(5 << 20, 'x') + "\"}";
  client.post("/v1/completions", body, "Expect: 100-continue\r\n");
  EXPECT_EQ(client.read_head().status, 100);
  engine_.wait_submitted(1);
  engine_.emit(1, "b", FinishReason::kLength);
  EXPECT_EQ(client.read_answer().status, 200);
}

TEST_F(ServerLimits, AStreamNobodyReadsIsDropped) {
  config_.limits.stream_queue = 64 << 10;
  start();
  HttpClient client(server_->port());
  client.post("/v1/completions", kWordyStream);
  engine_.wait_submitted(1);
  // The kernel's buffers take some megabytes before the server has to wait for the reader.
  const std::string text(1000, 'x');
  while (engine_.cancelled().empty()) engine_.emit(1, text);
  EXPECT_EQ(engine_.cancelled(), std::vector<RequestId>{1});
}

TEST_F(ServerLimits, AStalledWriteIsDropped) {
  config_.limits.write_stall = milliseconds(50);
  config_.limits.stream_queue = size_t(1) << 40;
  start();
  HttpClient client(server_->port());
  client.post("/v1/completions", kWordyStream);
  engine_.wait_submitted(1);
  const std::string text(1000, 'x');
  while (engine_.cancelled().empty()) {
    engine_.emit(1, text);
    std::this_thread::sleep_for(milliseconds(1));
  }
  EXPECT_EQ(engine_.cancelled(), std::vector<RequestId>{1});
}

TEST_F(ServerLimits, OpenCallsAreCounted) {
  config_.limits.open_calls = 1;
  engine_.on_submit = [](FakeEngine& engine, RequestId id, const Request&) {
    if (id > 1) engine.emit(id, "b", FinishReason::kLength);
  };
  start();
  HttpClient first(server_->port()), second(server_->port());
  first.post("/v1/completions", R"({"prompt":"a"})");
  engine_.wait_submitted(1);
  second.post("/v1/completions", R"({"prompt":"a"})");
  EXPECT_EQ(second.read_answer().status, 503);
  engine_.emit(1, "b", FinishReason::kLength);
  EXPECT_EQ(first.read_answer().status, 200);
  HttpAnswer answer;
  do {  // the place is free a moment after the last byte
    second.post("/v1/completions", R"({"prompt":"a"})");
    answer = second.read_answer();
  } while (answer.status == 503);
  EXPECT_EQ(answer.status, 200);
}

TEST_F(ServerLimits, ConnectionsAreCounted) {
  config_.limits.connections = 2;
  start();
  HttpClient first(server_->port()), second(server_->port());
  first.get("/live");
  EXPECT_EQ(first.read_answer().status, 200);
  second.get("/live");
  EXPECT_EQ(second.read_answer().status, 200);
  HttpClient third(server_->port());
  EXPECT_TRUE(third.at_end());
}

TEST_F(ServerLimits, ConnectionsAreCountedByAddressAndGivenBack) {
  config_.limits.connections_per_address = 1;
  start();
  auto first = std::make_unique<HttpClient>(server_->port());
  first->get("/live");
  EXPECT_EQ(first->read_answer().status, 200);
  EXPECT_TRUE(HttpClient(server_->port()).at_end());
  HttpClient elsewhere(server_->port(), "127.0.7.7");
  elsewhere.get("/live");
  EXPECT_EQ(elsewhere.read_answer().status, 200);
  first.reset();
  HttpAnswer answer;
  do {  // its end is seen a moment later
    HttpClient next(server_->port());
    next.get("/live");
    answer = next.read_answer();
  } while (answer.status == 0);
  EXPECT_EQ(answer.status, 200);
}

TEST_F(ServerLimits, BodiesShareTheirMemoryUntilTheyAreParsed) {
  config_.limits.body_memory = 50'000;
  start();
  const auto post = [&](HttpClient& client, size_t sent) {
    client.send(
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Content-Length: 100000\r\n\r\n" +
        std::string(sent, ' '));
  };
  HttpClient large(server_->port());
  post(large, 50'000);
  HttpAnswer refused;
  do {  // until the server has read the 50,000
    HttpClient other(server_->port());
    post(other, 0);
    other.end_sending();
    refused = other.read_answer();
  } while (refused.status == 0);
  EXPECT_EQ(refused.status, 503);
  EXPECT_TRUE(refused.has("Retry-After: 2"));
  EXPECT_EQ(get_from(server_->port(), "/v1/models").status, 200);
  large.close();
  engine_.on_submit = [](FakeEngine& engine, RequestId id, const Request&) {
    engine.emit(id, "b", FinishReason::kLength);
  };
  int status = 503;
  while (status == 503)
    status = post_to(server_->port(), "/v1/completions",
        R"({"prompt":"a","user":")" + std::string(40'000, 'x') + "\"}")
                 .status;
  EXPECT_EQ(status, 200);
}

TEST_F(ServerLimits, CallsForTheEngineAreRefusedWhileItsQueueStands) {
  config_.limits.queue_wait = milliseconds(1000);
  start();
  CoordinatorStats stats;
  stats.queue_wait = 1001;
  engine_.set_stats(stats);
  const HttpAnswer refused = post_to(server_->port(), "/v1/completions", R"({"prompt":"a"})");
  EXPECT_EQ(refused.status, 503);
  EXPECT_NE(refused.body.find("\"overloaded\""), std::string::npos);
  EXPECT_TRUE(refused.has("Retry-After: 2"));
  EXPECT_EQ(post_to(server_->port(), "/tokenize", R"({"prompt":"a"})").status, 200);
  stats.queue_wait = 1000;
  engine_.set_stats(stats);
  HttpClient client(server_->port());
  client.post("/v1/completions", R"({"prompt":"a"})");
  engine_.wait_submitted(1);
}

TEST_F(ServerLimits, AReaderOfADropNowAndThenIsDropped) {
  config_.limits.write_stall = milliseconds(300);
  config_.limits.stream_queue = size_t(1) << 40;
  start();
  HttpClient client(server_->port());
  client.post("/v1/completions", kWordyStream);
  engine_.wait_submitted(1);
  const std::string text(1000, 'x');
  std::jthread reader([&](const std::stop_token& stop) {
    // Less than body_rate, but more often than write_stall.
    while (!stop.stop_requested()) {
      client.sip(100);
      std::this_thread::sleep_for(milliseconds(100));
    }
  });
  while (engine_.cancelled().empty()) {
    engine_.emit(1, text);
    std::this_thread::sleep_for(milliseconds(1));
  }
  EXPECT_EQ(engine_.cancelled(), std::vector<RequestId>{1});
}

TEST_F(ServerLimits, ManyStreamsAtOnceAndDisconnectsAtRandom) {
  engine_.on_submit = [](FakeEngine& engine, RequestId id, const Request& request) {
    engine.emit(id, "abc");
    // A third of them is left open, for the client to leave.
    if (request.sampling.seed % 3 != 0) engine.emit(id, "def", FinishReason::kLength);
  };
  start();
  std::vector<std::thread> clients;
  std::atomic<int> whole{0};
  for (int t = 0; t < 8; ++t)
    clients.emplace_back([&, t] {
      for (int i = 0; i < 25; ++i) {
        const int seed = t * 25 + i;
        HttpClient client(server_->port());
        client.post("/v1/completions",
            R"({"prompt":"a","stream":true,"seed":)" + std::to_string(seed) + "}");
        if (seed % 3 == 0) {
          if (i % 2 == 0) client.read_head();
          continue;  // leaves
        }
        const HttpAnswer answer = client.read_answer();
        if (answer.body.ends_with("data: [DONE]\n\n")) ++whole;
      }
    });
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(whole, 133);
  server_->drain_and_stop();
  EXPECT_LE(engine_.cancelled().size(), 67u);
}

}  // namespace
}  // namespace millrace
