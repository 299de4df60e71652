#include "launch/cluster/engine.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <thread>

#include "engine/base/status.h"

namespace millrace {
namespace {

std::string model_path() {
  const char* path = std::getenv("MILLRACE_TEST_MODEL");
  return path != nullptr ? path : "models/SmolLM2-135M-Instruct.Q4_1.gguf";
}

// One engine in mode 1 for all tests: loading takes most of the time.
class EngineTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (!std::filesystem::exists(model_path())) return;
    LaunchConfig config;
    config.engine.model_path = model_path();
    config.engine.kv_cache_bytes = 64 << 20;
    config.log_level = "warning";
    engine = Engine::start(
        config, [](const Finished& finished) { ADD_FAILURE() << "lost: " << finished.message; });
  }
  static void TearDownTestSuite() { engine.reset(); }
  void SetUp() override {
    if (engine == nullptr) GTEST_SKIP() << "no model at " << model_path();
  }

  static Request request(int32_t max_tokens) {
    Request request;
    request.prompt = {504, 3575, 282, 4649, 314};
    request.sampling.temperature = 0;
    request.max_tokens = max_tokens;
    return request;
  }

  // All tokens of a request, with its end.
  static Emission collect(Request request) {
    auto all = std::make_shared<Emission>();
    auto done = std::make_shared<std::promise<Emission>>();
    engine->submit(std::move(request), [all, done](const Emission& emission) {
      all->tokens.insert(all->tokens.end(), emission.tokens.begin(), emission.tokens.end());
      all->finish = emission.finish;
      all->status = emission.status;
      if (emission.finish != FinishReason::kNone) done->set_value(*all);
    });
    return done->get_future().get();
  }

  static inline std::unique_ptr<Engine> engine;
};

TEST_F(EngineTest, AnswersTheSameAloneAndInCompany) {
  const Emission alone = collect(request(12));
  EXPECT_EQ(alone.finish, FinishReason::kLength);
  ASSERT_EQ(alone.tokens.size(), 12u);
  std::vector<std::future<Emission>> all;
  for (int i = 0; i < 4; ++i) {
    all.push_back(std::async(std::launch::async, [] { return collect(request(12)); }));
  }
  for (auto& each : all) {
    const Emission emission = each.get();
    ASSERT_EQ(emission.tokens.size(), 12u);
    for (size_t i = 0; i < 12; ++i) EXPECT_EQ(emission.tokens[i].token, alone.tokens[i].token);
  }
}

TEST_F(EngineTest, ACancelledRequestIsSilent) {
  std::promise<void> first;
  std::atomic<int> num_after{0};
  std::atomic<bool> cancelled{false};
  const RequestId id = engine->submit(request(1000), [&, told = false](const Emission&) mutable {
    if (!told) first.set_value();
    told = true;
    if (cancelled) ++num_after;
  });
  first.get_future().wait();
  engine->cancel(id);
  collect(request(1));  // the coordinator has seen the cancel when this ends
  cancelled = true;
  collect(request(4));
  EXPECT_EQ(num_after, 0);
  // Its slot comes back with the last plan that names it; hangs if it never does.
  while (engine->stats().scheduler.running > 0) std::this_thread::yield();
}

TEST_F(EngineTest, ARequestThatCanNeverFitIsRefused) {
  const Emission refused = collect(request(10'000'000));
  EXPECT_EQ(refused.finish, FinishReason::kError);
  EXPECT_EQ(refused.status.code, ErrorCode::kInvalidArgument);
  EXPECT_TRUE(engine->healthy());
}

TEST(ChooseMode, ByTheLauncherAndTheDegrees) {
  EngineConfig one;
  EngineConfig eight;
  eight.tp = 4;
  eight.pp = 2;
  EXPECT_EQ(choose_mode(one, -1), LaunchMode::kInProcess);
  EXPECT_EQ(choose_mode(eight, -1), LaunchMode::kMpirun);
  EXPECT_EQ(choose_mode(one, 1), LaunchMode::kUnderMpi);
  EXPECT_EQ(choose_mode(eight, 8), LaunchMode::kUnderMpi);
  try {
    choose_mode(eight, 6);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::kLayout);
    EXPECT_EQ(std::string(error.what()),
        "mpirun started 6 ranks, but -tp 4 times -pp 2 needs 8: choose -tp and -pp whose "
        "product is 6 (for example -tp 6), or run mpirun -np 8");
  }
}

TEST(EngineStart, AMissingModelIsToldBeforeAnythingIsStarted) {
  LaunchConfig config;
  config.engine.model_path = "/no/such/model";
  config.engine.tp = 2;
  try {
    Engine::start(config, nullptr);
    FAIL() << "started";
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::kModel);
    EXPECT_NE(std::string(error.what()).find("/no/such/model"), std::string::npos);
  }
}

}  // namespace
}  // namespace millrace
