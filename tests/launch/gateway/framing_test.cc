// Requests whose length two readers could take differently, as raw bytes to a running server, each
// with another request behind it that must not be answered. The cases are those that Beast 1.81
// lets pass or was measured to refuse.
#include <gtest/gtest.h>

#include <memory>

#include "launch/gateway/server.h"
#include "tests/launch/fake_engine.h"
#include "tests/launch/gateway/http_client.h"
#include "tests/launch/test_model.h"

namespace millrace {
namespace {

std::string post(const std::string& fields, const std::string& body = "", const char* end = "1.1") {
  return "POST /v1/completions HTTP/" + std::string(end) +
         "\r\nHost: localhost\r\nContent-Type: application/json\r\n" + fields + "\r\n" + body;
}

const std::string kChunked = "Transfer-Encoding: chunked\r\n";
const std::string kJson = R"({"prompt":"a"})";
const std::string kJsonChunk = "e\r\n" + kJson + "\r\n0\r\n\r\n";

struct Case {
  const char* name;
  std::string bytes;
  int status;
};

std::vector<Case> cases() {
  std::string tiny_fields;
  for (int i = 0; i < 1500; ++i) tiny_fields += "a:\r\n";
  const std::string length = "Content-Length: 14\r\n";
  const auto of_length = [](const std::string& value) {
    return post("Content-Length: " + value + "\r\n", kJson);
  };
  return {
      {"gzip, then length", post("Transfer-Encoding: gzip\r\n" + length, kJson), 400},
      {"xchunked, then length", post("Transfer-Encoding: xchunked\r\n" + length, kJson), 400},
      {"chunked, identity", post("Transfer-Encoding: chunked, identity\r\n", kJsonChunk), 400},
      {"identity, chunked", post("Transfer-Encoding: identity, chunked\r\n", kJsonChunk), 400},
      {"gzip only", post("Transfer-Encoding: gzip\r\n"), 400},
      {"chunked twice", post(kChunked + kChunked, kJsonChunk), 400},
      {"chunked, then length", post(kChunked + length, kJsonChunk), 400},
      {"length, then chunked", post(length + kChunked, kJsonChunk), 400},
      {"chunked on 1.0", post(kChunked, kJsonChunk, "1.0"), 400},
      {"Host in a trailer", post(kChunked, "e\r\n" + kJson + "\r\n0\r\nHost: evil\r\n\r\n"), 400},
      {"no Host", "GET /live HTTP/1.1\r\n\r\n", 400},
      {"two Hosts", "GET /live HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
      {"folded field", post("X: 1\r\n 2\r\n" + length, kJson), 400},
      {"folded length", post("Content-Length:\r\n 14\r\n", kJson), 400},
      {"1,500 tiny fields", post(tiny_fields + length, kJson), 431},
      {"differing lengths", post(length + "Content-Length: 13\r\n", kJson), 400},
      {"the same length twice", post(length + length, kJson), 400},
      {"list of lengths", of_length("14, 14"), 400},
      {"negative length", of_length("-14"), 400},
      {"signed length", of_length("+14"), 400},
      {"hex length", of_length("0xe"), 400},
      {"overflowing length", of_length("18446744073709551630"), 400},
      {"empty length", of_length(""), 400},
      {"blank in the length", of_length("1 4"), 400},
      {"no length", post("", kJson), 411},
      {"space before the colon", post("Content-Length : 14\r\n", kJson), 400},
      {"bare CR", post("X: a\rContent-Length: 14\r\n", kJson), 400},
      {"NUL", post(std::string("X: a\0b\r\n", 8) + length, kJson), 400},
      {"bare LF in the head", "GET /live HTTP/1.1\nHost: h\n\n\r\n\r\n", 400},
      {"chunk size with 0x", post(kChunked, "0xe\r\n" + kJson + "\r\n0\r\n\r\n"), 400},
      {"negative chunk size", post(kChunked, "-e\r\n" + kJson + "\r\n0\r\n\r\n"), 400},
      {"empty chunk size", post(kChunked, "\r\n" + kJson + "\r\n0\r\n\r\n"), 400},
      {"overflowing chunk size", post(kChunked, "1000000000000000e\r\n" + kJson), 400},
      {"chunk shorter than told", post(kChunked, "f\r\n" + kJson + "\r\n0\r\n\r\n"), 400},
      {"chunk longer than told", post(kChunked, "d\r\n" + kJson + "\r\n0\r\n\r\n"), 400},
      {"bare LF after a chunk size", post(kChunked, "e\n" + kJson + "\r\n0\r\n\r\n"), 400},
      {"bare LF after a chunk", post(kChunked, "e\r\n" + kJson + "\n0\r\n\r\n"), 400},
      {"version 1.2", post(length, kJson, "1.2"), 400},
      {"version 2.0", post(length, kJson, "2.0"), 400},
  };
}

TEST(Framing, EveryDoubtfulRequestIsRefusedAndNothingBehindItIsRead) {
  FakeEngine engine;
  ServerConfig config;
  config.port = 0;
  Server server(config);
  server.set_engine(engine, test_model());
  server.start();
  for (const Case& test : cases()) {
    HttpClient client(server.port());
    client.send(test.bytes + "GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n");
    const HttpAnswer answer = client.read_answer();
    EXPECT_EQ(answer.status, test.status) << test.name;
    EXPECT_TRUE(answer.has("Connection: close")) << test.name;
    EXPECT_TRUE(client.at_end()) << test.name;
  }
  EXPECT_EQ(engine.num_submitted(), 0u);
  // The same request, framed without doubt, is served: the cases fail by their framing alone.
  engine.on_submit = [](FakeEngine& fake, RequestId id, const Request&) {
    fake.emit(id, "b", FinishReason::kLength);
  };
  HttpClient client(server.port());
  client.send(post("Content-Length: 14\r\n", kJson) + post(kChunked, kJsonChunk));
  EXPECT_EQ(client.read_answer().status, 200);
  EXPECT_EQ(client.read_answer().status, 200);
}

}  // namespace
}  // namespace millrace
