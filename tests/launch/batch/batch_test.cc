// run_batch over real files and an engine that counts, and its parts.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <deque>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <thread>

#include "launch/batch/batch_file.h"
#include "launch/batch/batch_line.h"
#include "launch/batch/progress.h"
#include "launch/batch/run_batch.h"
#include "tests/launch/fake_engine.h"
#include "tests/launch/test_model.h"

namespace millrace {
namespace {

namespace json = boost::json;
namespace fs = std::filesystem;

std::string line(
    const std::string& id, const std::string& body, const std::string& url = "/v1/completions") {
  return R"({"custom_id":")" + id + R"(","method":"POST","url":")" + url + R"(","body":)" + body +
         "}\n";
}

// Answers with the prompt and ends.
void echo(FakeEngine& engine, RequestId id, const Request& request) {
  engine.emit(id, std::string(request.prompt.begin(), request.prompt.end()), FinishReason::kLength);
}

class Batch : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() /
              ("millrace_batch_" + std::string(test->name()) + "_" + std::to_string(getpid()));
    fs::create_directory(folder_);
    config_.input = folder_ / "in.jsonl";
    config_.output = folder_ / "out.jsonl";
    engine_.on_submit = echo;
  }
  void TearDown() override { fs::remove_all(folder_); }

  void write_input(const std::string& text) { std::ofstream(config_.input) << text; }
  BatchSummary run() { return run_batch(config_, engine_, model_); }
  std::map<std::string, json::value> results() {
    std::map<std::string, json::value> by_id;
    std::ifstream file(config_.output);
    for (std::string text; std::getline(file, text);) {
      const json::value row = json::parse(text);
      EXPECT_EQ(row.as_object().size(), 4u);
      const json::value& id = row.at("custom_id");
      const std::string key = id.is_null() ? "line " + json::serialize(row.at("error").at("line"))
                                           : std::string(id.as_string());
      EXPECT_TRUE(by_id.emplace(key, row).second) << key;
    }
    return by_id;
  }
  Error error_of_run() {
    try {
      run();
    } catch (const Error& error) {
      return error;
    }
    ADD_FAILURE() << "no error";
    return Error(ExitCode::kOk, "");
  }

  fs::path folder_;
  BatchConfig config_;
  FakeEngine engine_;
  ModelContext model_ = test_model();
};

TEST_F(Batch, AnswersEveryLineOnce) {
  write_input(
      line("a", R"({"prompt":"one"})") + "\n  \r\n" +
      line("b", R"({"messages":[{"role":"user","content":"Hi"}]})", "/v1/chat/completions") +
      R"({"custom_id":"c","method":"POST","url":"/v1/completions","body":{"prompt":"x","n":2}})");
  const BatchSummary summary = run();
  EXPECT_EQ(summary.completed, 3);
  EXPECT_EQ(summary.failed, 0);
  const auto rows = results();
  ASSERT_EQ(rows.size(), 3u);
  const json::value& response = rows.at("a").at("response");
  EXPECT_EQ(response.at("status_code"), 200);
  EXPECT_EQ(response.at("body").at("choices").at(0).at("text"), "one");
  EXPECT_TRUE(rows.at("a").at("error").is_null());
  EXPECT_EQ(rows.at("b").at("response").at("body").at("object"), "chat.completion");
  EXPECT_EQ(rows.at("c").at("response").at("body").at("choices").as_array().size(), 2u);
  EXPECT_EQ(summary.prompt_tokens, 3 + 24 + 1);
  EXPECT_EQ(summary.completion_tokens, 3 + 24 + 2);
  EXPECT_FALSE(fs::exists(config_.output + ".partial"));
}

TEST_F(Batch, BadLinesBecomeErrorLines) {
  write_input("{\n" + line("url", R"({"prompt":"x"})", "/v1/teleport") +
              R"({"custom_id":"get","method":"GET","url":"/v1/completions","body":{}})" + "\n" +
              R"({"custom_id":"nobody","method":"POST","url":"/v1/completions"})" + "\n" +
              R"({"method":"POST","url":"/v1/completions","body":{"prompt":"x"}})" + "\n" + "[]\n" +
              line("stream", R"({"prompt":"x","stream":true})") +
              line("hot", R"({"prompt":"x","temperature":99})") +
              line("model", R"({"prompt":"x","model":"other"})") +
              line("long", "{\"prompt\":\"" + std::string(300, 'a') + "\"}") +
              line("twice", R"({"prompt":"x","n":1,"n":1})") + line("good", R"({"prompt":"x"})"));
  const BatchSummary summary = run();
  EXPECT_EQ(summary.completed, 1);
  EXPECT_EQ(summary.failed, 11);
  const auto rows = results();
  EXPECT_EQ(rows.size(), 12u);
  for (const char* id : {"line 1", "url", "get", "nobody", "line 5", "line 6", "stream"}) {
    EXPECT_TRUE(rows.at(id).at("response").is_null()) << id;
    EXPECT_EQ(rows.at(id).at("error").at("code"), "invalid_line") << id;
  }
  // A key that stands twice spoils the whole line, its custom_id too.
  EXPECT_TRUE(rows.at("line 11").at("response").is_null());
  const json::value& hot = rows.at("hot").at("response");
  EXPECT_EQ(hot.at("status_code"), 400);
  EXPECT_EQ(hot.at("body").at("error").at("param"), "temperature");
  EXPECT_EQ(rows.at("model").at("response").at("status_code"), 404);
  EXPECT_EQ(
      rows.at("long").at("response").at("body").at("error").at("code"), "context_length_exceeded");
  EXPECT_EQ(rows.at("good").at("response").at("status_code"), 200);
}

TEST_F(Batch, ACustomIdUsedTwiceIsRefusedBeforeAnythingIsAsked) {
  std::string text;
  for (int i = 0; i < 50; ++i) text += line("row-" + std::to_string(i), R"({"prompt":"x"})");
  write_input(text + line("row-17", R"({"prompt":"y"})"));
  const Error error = error_of_run();
  EXPECT_EQ(error.exit_code(), ExitCode::kInput);
  const std::string message = error.what();
  EXPECT_NE(message.find("\"row-17\""), std::string::npos) << message;
  EXPECT_NE(message.find("line 18 and again on line 51"), std::string::npos) << message;
  EXPECT_EQ(engine_.num_submitted(), 0u);
  EXPECT_FALSE(fs::exists(config_.output));
  EXPECT_FALSE(fs::exists(config_.output + ".partial"));
}

TEST_F(Batch, TheWindowIsHeldAndFilled) {
  config_.max_in_flight = 7;
  std::string text;
  for (int i = 0; i < 100; ++i) text += line("row-" + std::to_string(i), R"({"prompt":"x"})");
  write_input(text);
  engine_.on_submit = nullptr;
  // The oldest request ends whenever the window is full.
  std::thread answers([&] {
    for (RequestId id = 1; id <= 100; ++id) {
      engine_.wait_submitted(std::min<size_t>(id + 6, 100));
      engine_.emit(id, "abc", FinishReason::kStop);
    }
  });
  const BatchSummary summary = run();
  answers.join();
  EXPECT_EQ(summary.completed, 100);
  EXPECT_EQ(engine_.max_open(), 7u);
  EXPECT_EQ(results().size(), 100u);
}

TEST_F(Batch, AFullQueueIsAskedAgain) {
  std::mutex mutex;
  std::deque<RequestId> queue;  // with room for five
  engine_.on_submit = [&](FakeEngine& engine, RequestId id, const Request&) {
    std::unique_lock lock(mutex);
    const bool full = queue.size() >= 5;
    if (!full) queue.push_back(id);
    lock.unlock();
    if (full) engine.emit(id, "", FinishReason::kError, {ErrorCode::kOverloaded, "full", ""});
  };
  std::thread answers([&] {
    for (int answered = 0; answered < 40;) {
      std::unique_lock lock(mutex);
      if (queue.empty()) continue;
      const RequestId id = queue.front();
      queue.pop_front();
      lock.unlock();
      engine_.emit(id, "x", FinishReason::kStop);
      ++answered;
    }
  });
  std::string text;
  for (int i = 0; i < 40; ++i) text += line("row-" + std::to_string(i), R"({"prompt":"x"})");
  write_input(text);
  const BatchSummary summary = run();
  answers.join();
  EXPECT_EQ(summary.completed, 40);
  EXPECT_EQ(summary.failed, 0);
  EXPECT_EQ(results().size(), 40u);
}

TEST_F(Batch, AFailedRequestFailsItsLineAlone) {
  engine_.on_submit = [](FakeEngine& engine, RequestId id, const Request& request) {
    if (id == 2)
      engine.emit(id, "", FinishReason::kError, {ErrorCode::kInternal, "Non-finite logits.", ""});
    else echo(engine, id, request);
  };
  write_input(line("a", R"({"prompt":"x"})") + line("b", R"({"prompt":"x"})") +
              line("c", R"({"prompt":"x"})"));
  EXPECT_EQ(run().failed, 1);
  EXPECT_EQ(results().at("b").at("response").at("status_code"), 500);
}

TEST_F(Batch, AnEngineThatEndsLeavesThePartialResults) {
  engine_.on_submit = [](FakeEngine& engine, RequestId id, const Request& request) {
    if (id == 3)
      engine.emit(id, "", FinishReason::kError, {ErrorCode::kUnavailable, "Rank 1 is gone.", ""});
    else echo(engine, id, request);
  };
  config_.max_in_flight = 1;
  write_input(line("a", R"({"prompt":"x"})") + line("b", R"({"prompt":"x"})") +
              line("c", R"({"prompt":"x"})"));
  const Error error = error_of_run();
  EXPECT_EQ(error.exit_code(), ExitCode::kWorkerLost);
  EXPECT_NE(std::string(error.what()).find("Rank 1 is gone."), std::string::npos);
  EXPECT_FALSE(fs::exists(config_.output));
  config_.output += ".partial";
  EXPECT_EQ(results().size(), 2u);
}

TEST_F(Batch, FilesThatCannotBeUsed) {
  EXPECT_EQ(error_of_run().exit_code(), ExitCode::kInput);  // no input
  write_input(line("a", R"({"prompt":"x"})"));
  const std::string good = config_.output;
  for (const std::string& bad :
      {folder_.string(), (folder_ / "none" / "out").string(), std::string("/dev/null")}) {
    config_.output = bad;
    EXPECT_EQ(error_of_run().exit_code(), ExitCode::kInput) << bad;
  }
  config_.output = good;
  config_.input = folder_;
  EXPECT_EQ(error_of_run().exit_code(), ExitCode::kInput);
  EXPECT_EQ(engine_.num_submitted(), 0u);
}

TEST_F(Batch, AnExistingOutputIsReplaced) {
  std::ofstream(config_.output) << "old\n";
  write_input("");
  EXPECT_EQ(run().completed, 0);
  EXPECT_EQ(fs::file_size(config_.output), 0u);
}

TEST_F(Batch, LinesOfAnyLength) {
  const std::string medium(200'000, 'm');
  write_input("first\n" + medium + "\n" + std::string(BatchInput::kMaxLine + 5, 'x') + "\nlast");
  BatchInput input(config_.input);
  std::string text;
  for (int pass = 0; pass < 2; ++pass) {
    bool too_long = false;
    EXPECT_TRUE(input.next(text, too_long));
    EXPECT_EQ(text, "first");
    EXPECT_TRUE(input.next(text, too_long));
    EXPECT_EQ(text, medium);
    EXPECT_FALSE(too_long);
    EXPECT_TRUE(input.next(text, too_long));
    EXPECT_TRUE(too_long);
    EXPECT_TRUE(input.next(text, too_long));
    EXPECT_EQ(text, "last");
    EXPECT_FALSE(too_long);
    EXPECT_EQ(input.line_number(), 4);
    EXPECT_FALSE(input.next(text, too_long));
    input.rewind();
  }
}

TEST(BatchProgress, Lines) {
  EXPECT_EQ(Progress::line(40, 100, 0, 1000, 10, true),
      "[############..................] 40/100  40 %  100.0 tokens/s  ETA 0:15");
  EXPECT_EQ(Progress::line(0, 100, 0, 0, 0, false), "0/100  0 %  0.0 tokens/s");
  EXPECT_EQ(Progress::line(100, 100, 3, 500, 4000, false),
      "100/100  100 %  0.1 tokens/s  3 failed  took 1:06:40");
  EXPECT_EQ(Progress::line(0, 0, 0, 0, 1, true),
      "[##############################] 0/0  100 %  0.0 tokens/s  took 0:01");
}

}  // namespace
}  // namespace millrace
