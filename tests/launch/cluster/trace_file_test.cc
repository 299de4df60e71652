#include "launch/cluster/trace_file.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <fstream>
#include <iterator>
#include <map>

#include "engine/base/status.h"

namespace millrace {
namespace {

namespace json = boost::json;

json::array events_of(const std::string& path) {
  std::ifstream in(path);
  const std::string text(std::istreambuf_iterator<char>(in), {});
  return json::parse(text).as_object().at("traceEvents").as_array();
}

TEST(TraceFile, EachStepGivesItsSpansOnItsRanksTracks) {
  const std::string path = testing::TempDir() + "trace.json";
  EngineConfig engine;
  engine.tp = 2;
  engine.pp = 2;
  constexpr int64_t kStart = 1'700'000'000'000'000'000;  // a real clock's
  {
    TraceFile file(path, engine);
    file.add(3, {.sequence = 7,
                    .rows = 4,
                    .tokens = 9,
                    .host_begin = kStart,
                    .host_end = kStart + 20'000,
                    .last_end = kStart - 5'000,
                    .begin = kStart,
                    .ready = kStart + 3'000,
                    .forward = kStart + 90'500,
                    .end = kStart + 91'000,
                    .comm = 40'500});
  }
  std::map<std::string, json::object> spans;
  std::map<int64_t, std::string> ranks;
  for (const auto& event : events_of(path)) {
    const json::object& each = event.as_object();
    const std::string name(each.at("name").as_string());
    if (each.at("ph").as_string() == "X") spans[name] = each;
    if (name == "process_name") {
      ranks[each.at("pid").as_int64()] = each.at("args").at("name").as_string();
    }
  }
  EXPECT_EQ(ranks.size(), 4u);
  EXPECT_EQ(ranks[2], "rank 2: stage 1, tp 0");
  ASSERT_EQ(spans.size(), 6u);
  const auto expect = [&](const char* name, double ts, double dur) {
    ASSERT_TRUE(spans.contains(name)) << name;
    EXPECT_DOUBLE_EQ(spans[name].at("ts").to_number<double>(), ts) << name;
    EXPECT_DOUBLE_EQ(spans[name].at("dur").to_number<double>(), dur) << name;
    EXPECT_EQ(spans[name].at("pid").as_int64(), 3) << name;
    EXPECT_EQ(spans[name].at("args").at("tokens").as_int64(), 9) << name;
  };
  expect("enqueue", 0, 20);
  expect("idle", -5, 5);
  expect("wait for input", 0, 3);
  expect("forward", 3, 87.5);
  expect("exposed communication", 50, 40.5);
  expect("sample or hand over", 90.5, 0.5);
  EXPECT_NE(spans["enqueue"].at("tid"), spans["forward"].at("tid"));
}

TEST(TraceFile, WithoutStepsItIsStillATraceAndABadPathIsToldAtOnce) {
  const std::string path = testing::TempDir() + "empty_trace.json";
  { TraceFile file(path, EngineConfig()); }
  EXPECT_EQ(events_of(path).size(), 3u);  // the names alone
  try {
    TraceFile file("/nowhere/at/all.json", EngineConfig());
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::kInput);
    EXPECT_NE(std::string(error.what()).find("/nowhere/at/all.json"), std::string::npos);
  }
}

}  // namespace
}  // namespace millrace
