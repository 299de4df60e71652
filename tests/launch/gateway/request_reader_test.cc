#include "launch/gateway/request_reader.h"

#include <gtest/gtest.h>

#include <vector>

namespace millrace {
namespace {

using State = RequestReader::State;

struct Outcome {
  State state = State::kIdle;
  int status = 0;
  std::vector<HttpRequest> requests;
  size_t unread = 0;
};

// Reads all of `bytes`, `step` at a time.
Outcome read(std::string_view bytes, size_t step = size_t(-1), const HttpLimits& limits = {}) {
  RequestReader reader(limits);
  Outcome outcome;
  while (!bytes.empty()) {
    reader.append(bytes.substr(0, step));
    bytes.remove_prefix(std::min(step, bytes.size()));
    while ((outcome.state = reader.advance()) == State::kDone)
      outcome.requests.push_back(reader.take());
    if (outcome.state == State::kRefused) break;
  }
  if (outcome.state == State::kRefused) outcome.status = reader.refusal().status;
  outcome.unread = reader.unread();
  return outcome;
}

std::string get(const std::string& fields) { return "GET / HTTP/1.1\r\n" + fields + "\r\n"; }
std::string post(const std::string& fields, const std::string& body) {
  return "POST /x HTTP/1.1\r\nHost: h\r\n" + fields + "\r\n" + body;
}

TEST(RequestReader, ReadsRequestsHoweverTheBytesAreCut) {
  const std::string bytes =
      "\r\nGET /a?b HTTP/1.1\r\nHost: h\r\nX-Request-Id: abc-1\r\n\r\n" +
      post("Content-Type: application/json\r\nContent-Length: 4\r\n", "{  }") +
      post("Transfer-Encoding: CHUNKED\r\n", "3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n") +
      "GET /c HTTP/1.0\r\nHost: h\r\n\r\n";
  for (size_t step = 1; step <= bytes.size(); ++step) {
    const Outcome outcome = read(bytes, step);
    ASSERT_EQ(outcome.requests.size(), 4u) << step;
    EXPECT_EQ(outcome.requests[0].target, "/a?b");
    EXPECT_EQ(outcome.requests[0].request_id, "abc-1");
    EXPECT_TRUE(outcome.requests[0].keep_alive);
    EXPECT_EQ(outcome.requests[1].method, "POST");
    EXPECT_EQ(outcome.requests[1].content_type, "application/json");
    EXPECT_EQ(outcome.requests[1].body, "{  }");
    EXPECT_EQ(outcome.requests[1].request_id, "");
    EXPECT_EQ(outcome.requests[2].body, "abcde");
    EXPECT_FALSE(outcome.requests[3].http_1_1);
    EXPECT_FALSE(outcome.requests[3].keep_alive);
    EXPECT_EQ(outcome.state, State::kIdle);
    EXPECT_EQ(outcome.unread, 0u);
  }
}

TEST(RequestReader, RefusesWhatCouldBeReadInTwoWays) {
  const std::vector<std::pair<std::string, int>> cases = {
      {get(""), 400},
      {get("Host: a\r\nHost: b\r\n"), 400},
      {get("Host: a\r\nX: 1\r\n 2\r\n"), 400},
      {get("Host: a\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\n"), 400},
      {get("Host: a\r\n\tb\r\n"), 400},
      {post("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), 400},
      {post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"), 400},
      {post("Transfer-Encoding: gzip\r\nContent-Length: 1\r\n", "x"), 400},
      {post("Transfer-Encoding: xchunked\r\nContent-Length: 1\r\n", "x"), 400},
      {post("Transfer-Encoding: gzip\r\n", ""), 400},
      {post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"), 400},
      {post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), 400},
      {post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), 400},
      {post("Content-Length: 1\r\nContent-Length: 1\r\n", "x"), 400},
      {post("Content-Length: 1\r\nContent-Length: 2\r\n", "xy"), 400},
      {post("Content-Length: -1\r\n", ""), 400},
      {post("Content-Length: +1\r\n", "x"), 400},
      {post("Content-Length: 0x1\r\n", "x"), 400},
      {post("Content-Length: \r\n", "x"), 400},
      {post("Content-Length: 1, 1\r\n", "x"), 400},
      {post("Content-Length: 99999999999999999999\r\n", "x"), 400},
      {post("Content-Length : 1\r\n", "x"), 400},
      {"POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
      {"GET / HTTP/2.0\r\nHost: h\r\n\r\n", 400},
      {"GET / HTTP/1.1\nHost: h\n\n\r\n\r\n", 400},
      {"GET /\x01 HTTP/1.1\r\nHost: h\r\n\r\n", 400},
      {std::string("GET / HTTP/1.1\r\nHost: h\0\r\n\r\n", 28), 400},
      {"GET / HTTP/1.1\r\nHost: h\rX: 1\r\n\r\n", 400},
      {"nonsense\r\n\r\n", 400},
      {"GET  / HTTP/1.1\r\nHost: h\r\n\r\n", 400},
      {post("Transfer-Encoding: chunked\r\n", "x\r\nabc\r\n0\r\n\r\n"), 400},
      {post("Transfer-Encoding: chunked\r\n", "-1\r\nabc\r\n0\r\n\r\n"), 400},
      {post("Transfer-Encoding: chunked\r\n", "3\nabc\r\n0\r\n\r\n"), 400},
      {post("Transfer-Encoding: chunked\r\n", "3\r\nabcd\r\n0\r\n\r\n"), 400},
      {post("Transfer-Encoding: chunked\r\n", "fffffffffffffffff\r\nabc\r\n0\r\n\r\n"), 400},
      {post("", ""), 411},
      {post("Content-Encoding: gzip\r\nContent-Length: 1\r\n", "x"), 415},
      {post("Expect: 200-ok\r\nContent-Length: 1\r\n", "x"), 417},
  };
  for (const auto& [bytes, status] : cases)
    for (const size_t step : {size_t(1), size_t(-1)}) {
      const Outcome outcome = read(bytes, step);
      EXPECT_EQ(outcome.status, status) << bytes;
      EXPECT_TRUE(outcome.requests.empty()) << bytes;
    }
}

TEST(RequestReader, ATrailerChangesNothingAndMayNotNameAHost) {
  const std::string chunked = "Transfer-Encoding: chunked\r\n", end = "1\r\nx\r\n0\r\n";
  const Outcome outcome = read(post(
      chunked, end + "Connection: close\r\nAuthorization: Bearer x\r\nContent-Type: a/b\r\n\r\n"));
  ASSERT_EQ(outcome.requests.size(), 1u);
  EXPECT_TRUE(outcome.requests[0].keep_alive);
  EXPECT_EQ(outcome.requests[0].authorization, "");
  EXPECT_EQ(outcome.requests[0].content_type, "");
  EXPECT_EQ(read(post(chunked, end + "Host: evil\r\n\r\n")).status, 400);
}

TEST(RequestReader, HoldsItsLimits) {
  HttpLimits limits;
  const std::string host = "Host: h\r\n";
  const auto padded = [&](size_t size) {  // a head of exactly `size` bytes
    const std::string around = get(host + "A: \r\n");
    return get(host + "A: " + std::string(size - around.size(), 'a') + "\r\n");
  };
  EXPECT_EQ(read(padded(limits.head_bytes)).requests.size(), 1u);
  EXPECT_EQ(read(padded(limits.head_bytes + 1)).status, 431);
  EXPECT_EQ(read(std::string(limits.head_bytes + 1, 'a'), 1000).status, 431);
  std::string fields = host;
  for (size_t i = 1; i < limits.head_fields; ++i) fields += "A: b\r\n";
  EXPECT_EQ(read(get(fields)).requests.size(), 1u);
  EXPECT_EQ(read(get(fields + "A: b\r\n")).status, 431);
  EXPECT_EQ(
      read("GET /" + std::string(limits.target_bytes, 'a') + " HTTP/1.1\r\nHost: h\r\n\r\n").status,
      414);

  limits.body_bytes = 100;
  const std::string body(100, 'x');
  EXPECT_EQ(read(post("Content-Length: 100\r\n", body), 7, limits).requests.size(), 1u);
  EXPECT_EQ(read(post("Content-Length: 101\r\n", ""), 7, limits).status, 413);  // before any of it
  const std::string chunk50 = "32\r\n" + std::string(50, 'x') + "\r\n";
  const std::string chunked = "Transfer-Encoding: chunked\r\n";
  EXPECT_EQ(read(post(chunked, chunk50 + chunk50 + "0\r\n\r\n"), 7, limits).requests.size(), 1u);
  EXPECT_EQ(read(post(chunked, chunk50 + chunk50 + "1\r\n"), 7, limits).status, 413);
  EXPECT_EQ(read(post(chunked, "ffffff\r\n"), 7, limits).status, 413);
  limits.body_chunks = 3;
  const std::string chunk1 = "1\r\nx\r\n";
  EXPECT_EQ(read(post(chunked, chunk1 + chunk1 + "0\r\n\r\n"), 1, limits).requests.size(), 1u);
  EXPECT_EQ(read(post(chunked, chunk1 + chunk1 + chunk1 + "0\r\n\r\n"), 1, limits).status, 413);
  // A chunk's extension, or a trailer, without end.
  for (const char* start : {"1;", "0\r\nA: "})
    EXPECT_NE(read(post(chunked, start + std::string(100'000, 'a')), 1000, limits).status, 0);
}

TEST(RequestReader, SaysOnceThatTheClientWaits) {
  const HttpLimits limits;
  RequestReader reader(limits);
  reader.append(post("Expect: 100-continue\r\nContent-Length: 2\r\n", ""));
  EXPECT_EQ(reader.advance(), State::kBody);
  EXPECT_TRUE(reader.take_expect_continue());
  EXPECT_FALSE(reader.take_expect_continue());
  reader.append("ab");
  EXPECT_EQ(reader.advance(), State::kDone);
  EXPECT_EQ(reader.take().body, "ab");
}

TEST(RequestReader, OddRequestIdsAreNotTaken) {
  for (const std::string& id : {std::string("a b"), std::string(129, 'a'), std::string("\xC3\xA9")})
    EXPECT_EQ(read(get("Host: h\r\nX-Request-Id: " + id + "\r\n")).requests.at(0).request_id, "");
}

}  // namespace
}  // namespace millrace
