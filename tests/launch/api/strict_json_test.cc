#include "launch/api/strict_json.h"

#include <gtest/gtest.h>

#include <string>

#include "engine/base/status.h"

namespace millrace {
namespace {

std::string refusal(std::string_view text) {
  try {
    parse_json(text);
    return "";
  } catch (const RequestError& error) {
    EXPECT_EQ(error.status().code, ErrorCode::kInvalidArgument);
    return error.what();
  }
}

std::string nested(size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); }

TEST(StrictJson, ParsesWhatTheStandardAllows) {
  const auto value =
      parse_json(R"( {"a": [1, -2.5e3, "x\n\u00e9\ud83d\ude00", null, true], "b": {}} )");
  EXPECT_EQ(value.at("a").at(0).as_int64(), 1);
  EXPECT_EQ(value.at("a").at(1).as_double(), -2500.0);
  EXPECT_EQ(value.at("a").at(2).as_string(), "x\n\xC3\xA9\xF0\x9F\x98\x80");
  EXPECT_TRUE(value.at("b").as_object().empty());
  EXPECT_EQ(parse_json("18446744073709551615").as_uint64(), ~uint64_t{0});
}

TEST(StrictJson, RefusesWhatItDoesNot) {
  for (const char* text : {"", " ", "{", "[1,]", "{\"a\":1,}", "{a:1}", "'a'", "NaN", "[NaN]",
           "Infinity", "-Infinity", "01", "1 2", "{} x", "\"\\ud800\"", "\"\x80\"", "\"a",
           "// c\n1", "[1] // c", "\"\n\"", "+1", ".5", "\"\\x\"", "nul"})
    EXPECT_NE(refusal(text), "") << text;
}

TEST(StrictJson, RefusesNumbersBeyondADouble) {
  EXPECT_NE(refusal("1e400"), "");
  EXPECT_NE(refusal("{\"temperature\": -1e400}"), "");
  EXPECT_EQ(refusal("1e308"), "");
  EXPECT_EQ(refusal("1e-400"), "");  // a small number is zero, not infinite
}

TEST(StrictJson, RefusesAKeyTwiceAtAnyLevel) {
  EXPECT_NE(refusal(R"({"n":1,"n":2})").find("'n'"), std::string::npos);
  EXPECT_NE(refusal(R"({"n":1,"\u006e":2})"), "");  // the same key, spelled otherwise
  EXPECT_NE(refusal(R"([{"a":{"b":1,"c":2,"b":1}}])"), "");
  EXPECT_NE(refusal(R"({"a":{"b":1},"a":{"b":1}})"), "");
  EXPECT_EQ(refusal(R"({"a":{"a":{"a":1}},"b":{"a":1},"c":[{"a":1},{"a":1}]})"), "");
}

TEST(StrictJson, HoldsItsBounds) {
  EXPECT_EQ(refusal(nested(kMaxJsonDepth)), "");
  EXPECT_NE(refusal(nested(kMaxJsonDepth + 1)).find("64 levels"), std::string::npos);
  EXPECT_NE(refusal(std::string(1'000'000, '[')), "");
  std::string object = "{";
  for (size_t i = 0; i < kMaxJsonKeys; ++i)
    object += (i ? ",\"k" : "\"k") + std::to_string(i) + "\":0";
  EXPECT_EQ(refusal(object + "}"), "");
  EXPECT_NE(refusal(object + ",\"one\":0}").find("keys"), std::string::npos);
  std::string values = "[0";
  for (size_t i = 0; i < kMaxJsonValues; ++i) values += ",0";
  EXPECT_NE(refusal(values + "]").find("too many"), std::string::npos);
}

}  // namespace
}  // namespace millrace
