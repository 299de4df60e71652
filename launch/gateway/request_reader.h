// Bytes in, HTTP requests out: a strict layer over Beast's parser, which alone lets pass what
// request smuggling needs (two framings, folded fields, no Host or two). Knows no socket. One
// connection's; one thread at a time.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "launch/gateway/server.h"

namespace millrace {

struct HttpRequest {
  std::string method;
  std::string target;
  std::string content_type;
  std::string authorization;  // a secret: never to be logged
  std::string request_id;     // X-Request-Id, if it is 1 to 128 printable characters
  std::string host;
  std::string origin;        // of a browser's page
  std::string cors_method;   // Access-Control-Request-Method ...
  std::string cors_headers;  // ... and -Headers
  std::string body;
  bool keep_alive = false;
  bool http_1_1 = false;
};

// Why the connection must end: what follows on it can't be trusted to be a request.
struct HttpRefusal {
  int status = 400;
  std::string message;
};

class RequestReader {
 public:
  enum class State { kIdle, kHead, kBody, kDone, kRefused };

  explicit RequestReader(const HttpLimits& limits);
  ~RequestReader();

  void append(std::string_view bytes) { unread_ += bytes; }
  // Parses as far as the bytes reach. kDone and kRefused stay until take().
  State advance();
  // The request of kDone; bytes that followed it are kept for the next advance().
  HttpRequest take();
  // What the head said, from kBody on; its body is not there yet.
  const HttpRequest& head() const { return request_; }
  const HttpRefusal& refusal() const { return refusal_; }
  // True once, when the client waits for "100 Continue" before it sends the body.
  bool take_expect_continue();
  size_t unread() const { return unread_.size(); }
  size_t body_received() const { return body_received_; }

 private:
  struct Parser;
  void read_head(size_t head_size);
  void check_raw_head(std::string_view head);
  void check_fields();
  void read_body();
  void refuse(int status, std::string message);

  const HttpLimits& limits_;
  State state_ = State::kIdle;
  std::string unread_;
  size_t scanned_ = 0;  // of unread_, for the end of the head
  std::unique_ptr<Parser> parser_;
  HttpRequest request_;
  HttpRefusal refusal_;
  size_t body_received_ = 0;
  bool expects_continue_ = false;
};

}  // namespace millrace
