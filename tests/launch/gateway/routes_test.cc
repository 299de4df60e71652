// Routes beside the calls of OpenAI's API: text and ids, load, figures.
#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <memory>
#include <regex>

#include "launch/gateway/server.h"
#include "tests/launch/fake_engine.h"
#include "tests/launch/gateway/http_client.h"
#include "tests/launch/test_model.h"

namespace millrace {
namespace {

class Routes : public ::testing::Test {
 protected:
  void start(const std::string& name = "test-model") {
    ServerConfig config;
    config.port = 0;
    server_ = std::make_unique<Server>(config);
    ModelContext model = test_model();
    model.name = name;
    server_->set_engine(engine_, model);
    server_->start();
  }
  HttpAnswer get(const std::string& path) { return get_from(server_->port(), path); }
  HttpAnswer post(const std::string& path, const std::string& body) {
    return post_to(server_->port(), path, body);
  }
  // The value of the sample that begins so; -1 when there is none.
  double figure(const std::string& sample) {
    const std::string text = "\n" + get("/metrics").body;
    const size_t at = text.find("\n" + sample + " ");
    return at == std::string::npos ? -1 : std::stod(text.substr(at + sample.size() + 2));
  }

  FakeEngine engine_;
  std::unique_ptr<Server> server_;
};

TEST_F(Routes, TokenizeAndDetokenize) {
  start();
  HttpAnswer answer = post("/tokenize", R"({"prompt":"Hi"})");
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(boost::json::parse(answer.body).at("tokens").as_array().size(), 2u);
  answer = post("/detokenize", R"({"tokens":[72,105]})");
  EXPECT_EQ(answer.body, R"({"prompt":"Hi"})");
  EXPECT_EQ(post("/detokenize", R"({"tokens":[9999]})").status, 400);
  EXPECT_EQ(get("/tokenize").status, 405);
  EXPECT_EQ(engine_.num_submitted(), 0u);
}

TEST_F(Routes, LoadIsTheNumberOfOpenCalls) {
  start();
  EXPECT_EQ(get("/load").body, R"({"server_load":0})");
  HttpClient client(server_->port());
  client.post("/v1/completions", R"({"prompt":"a"})");
  engine_.wait_submitted(1);
  EXPECT_EQ(get("/load").body, R"({"server_load":1})");
}

TEST_F(Routes, MetricsCountCallsUnderBothNames) {
  start("a\"b");
  engine_.on_submit = [](FakeEngine& engine, RequestId id, const Request&) {
    engine.emit(id, "xy");
    engine.emit(id, "z", FinishReason::kLength);
  };
  EXPECT_EQ(post("/v1/completions", R"({"prompt":"abcd","n":2,"max_tokens":7})").status, 200);
  EXPECT_EQ(post("/v1/completions", R"({"prompt":""})").status, 400);
  const std::string labels = R"({model_name="a\"b",engine="0")";
  for (const std::string prefix : {"millrace:", "vllm:"}) {
    const auto is = [&](const std::string& name, const std::string& more) {
      return figure(prefix + name + labels + more + "}");
    };
    EXPECT_EQ(is("prompt_tokens_total", ""), 4);
    EXPECT_EQ(is("generation_tokens_total", ""), 6);
    EXPECT_EQ(is("request_success_total", R"(,finished_reason="length")"), 2);
    EXPECT_EQ(is("request_success_total", R"(,finished_reason="stop")"), 0);
    EXPECT_EQ(is("time_to_first_token_seconds_count", ""), 2);
    EXPECT_EQ(is("inter_token_latency_seconds_count", ""), 2);
    EXPECT_EQ(is("e2e_request_latency_seconds_count", ""), 2);
    EXPECT_EQ(is("e2e_request_latency_seconds_bucket", R"(,le="+Inf")"), 2);
    EXPECT_EQ(is("request_prompt_tokens_sum", ""), 8);
    EXPECT_EQ(is("request_generation_tokens_bucket", R"(,le="2")"), 0);
    EXPECT_EQ(is("request_generation_tokens_bucket", R"(,le="5")"), 2);
    EXPECT_EQ(is("request_params_max_tokens_sum", ""), 14);
    EXPECT_EQ(is("request_params_n_sum", ""), 2);
  }
  EXPECT_EQ(figure("millrace:http_answers_total" + labels + R"(,status="400"})"), 1);
  EXPECT_EQ(figure("vllm:http_answers_total" + labels + R"(,status="400"})"), -1);
}

TEST_F(Routes, MetricsTellOfTheEngine) {
  start();
  CoordinatorStats stats;
  stats.scheduler.running = 3;
  stats.scheduler.waiting = 2;
  stats.scheduler.num_blocks = 8;
  stats.scheduler.free_blocks = 6;
  stats.scheduler.preemptions = 5;
  stats.scheduler.admitted_tokens = 100;
  stats.scheduler.prefix_hit_tokens = 40;
  stats.stages = {{.compute_us = 2'500'000}, {.idle_us = 500'000}};
  engine_.set_stats(stats);
  const std::string labels = R"({model_name="test-model",engine="0")";
  EXPECT_EQ(figure("vllm:num_requests_running" + labels + "}"), 3);
  EXPECT_EQ(figure("vllm:num_requests_waiting" + labels + "}"), 2);
  EXPECT_EQ(figure("vllm:kv_cache_usage_perc" + labels + "}"), 0.25);
  EXPECT_EQ(figure("vllm:num_preemptions_total" + labels + "}"), 5);
  EXPECT_EQ(figure("vllm:prefix_cache_queries_total" + labels + "}"), 100);
  EXPECT_EQ(figure("vllm:prefix_cache_hits_total" + labels + "}"), 40);
  EXPECT_EQ(figure("millrace:stage_busy_seconds_total" + labels + R"(,stage="0"})"), 2.5);
  EXPECT_EQ(figure("millrace:stage_bubble_seconds_total" + labels + R"(,stage="1"})"), 0.5);
}

TEST_F(Routes, EveryLineOfMetricsIsPrometheusText) {
  start("odd \\ \" \n name");
  const HttpAnswer answer = get("/metrics");
  EXPECT_EQ(answer.status, 200);
  EXPECT_TRUE(answer.has("Content-Type: text/plain; version=0.0.4; charset=utf-8"));
  const std::regex type("# TYPE [a-z0-9_:]+ (counter|gauge|histogram)");
  const std::regex sample(
      R"re([a-z0-9_:]+\{[a-z_]+="([^"\\]|\\[\\"n])*"(,[a-z_]+="[^"\\]*")*\} [0-9.e+-]+)re");
  size_t lines = 0;
  for (size_t at = 0; at < answer.body.size(); ++lines) {
    const size_t end = answer.body.find('\n', at);
    ASSERT_NE(end, std::string::npos);
    const std::string line = answer.body.substr(at, end - at);
    EXPECT_TRUE(std::regex_match(line, type) || std::regex_match(line, sample)) << line;
    at = end + 1;
  }
  EXPECT_GT(lines, 300u);
}

TEST_F(Routes, ACallThatIsAbandonedCountsAsAborted) {
  start();
  {
    HttpClient client(server_->port());
    client.post("/v1/completions", R"({"prompt":["a","b"],"stream":true})");
    engine_.wait_submitted(2);
    engine_.emit(1, "x", FinishReason::kLength);
    client.read_head();
  }
  engine_.wait_cancelled(1);
  const std::string labels = R"({model_name="test-model",engine="0",finished_reason=)";
  EXPECT_EQ(figure("vllm:request_success_total" + labels + "\"abort\"}"), 1);
  EXPECT_EQ(figure("vllm:request_success_total" + labels + "\"length\"}"), 1);
}

TEST_F(Routes, FiguresAreToldOfAFailedServerToo) {
  start();
  server_->fail({ErrorCode::kUnavailable, "Rank 1 is gone.", ""});
  EXPECT_EQ(get("/health").status, 503);
  EXPECT_EQ(get("/metrics").status, 200);
  EXPECT_EQ(get("/load").status, 200);
}

}  // namespace
}  // namespace millrace
