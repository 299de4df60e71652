#include "launch/gateway/request_reader.h"

#include <algorithm>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/optional/optional.hpp>
#include <functional>

namespace millrace {
namespace {

namespace beast = boost::beast;
namespace http = boost::beast::http;

constexpr std::string_view kLineEnd = "\r\n";
constexpr std::string_view kHeadEnd = "\r\n\r\n";

size_t count_fields(const http::fields& fields, http::field name) {
  const auto range = fields.equal_range(name);
  return static_cast<size_t>(std::distance(range.first, range.second));
}

bool is_printable_id(std::string_view id) {
  return !id.empty() && id.size() <= 128 &&
         std::all_of(id.begin(), id.end(), [](char c) { return c > ' ' && c <= '~'; });
}

}  // namespace

struct RequestReader::Parser {
  http::request_parser<http::string_body> beast;
  size_t num_chunks = 0;
  // Beast keeps a reference to it.
  std::function<void(uint64_t, beast::string_view, beast::error_code&)> on_chunk;
};

RequestReader::RequestReader(const HttpLimits& limits) : limits_(limits) {}
RequestReader::~RequestReader() = default;

void RequestReader::refuse(int status, std::string message) {
  state_ = State::kRefused;
  refusal_ = {status, std::move(message)};
}

RequestReader::State RequestReader::advance() {
  if (state_ == State::kIdle) {
    // RFC 9112, 2.2: empty lines before a request are to be passed over.
    while (unread_.starts_with(kLineEnd)) unread_.erase(0, kLineEnd.size());
    if (!unread_.empty() && unread_ != "\r") state_ = State::kHead;
  }
  if (state_ == State::kHead) {
    const size_t from = scanned_ - std::min(scanned_, kHeadEnd.size() - 1);
    const size_t end = unread_.find(kHeadEnd, from);
    scanned_ = unread_.size();
    const size_t head_size = end == std::string::npos ? unread_.size() : end + kHeadEnd.size();
    if (head_size > limits_.head_bytes) refuse(431, "The request's head is too large.");
    else if (end != std::string::npos) read_head(head_size);
  }
  if (state_ == State::kBody) read_body();
  return state_;
}

void RequestReader::read_head(size_t head_size) {
  const std::string head = unread_.substr(0, head_size);
  unread_.erase(0, head_size);
  scanned_ = 0;
  check_raw_head(head);
  if (state_ == State::kRefused) return;
  parser_ = std::make_unique<Parser>();
  parser_->beast.header_limit(static_cast<uint32_t>(limits_.head_bytes));
  parser_->beast.body_limit(limits_.body_bytes);
  parser_->on_chunk = [this](uint64_t, beast::string_view, beast::error_code& error) {
    if (++parser_->num_chunks > limits_.body_chunks) error = http::error::body_limit;
  };
  parser_->beast.on_chunk_header(parser_->on_chunk);
  beast::error_code error;
  parser_->beast.put(boost::asio::buffer(head), error);
  if (error == http::error::body_limit) return refuse(413, "The request's body is too large.");
  if ((error && error != http::error::need_more) || !parser_->beast.is_header_done())
    return refuse(400, "The request's head is not well-formed HTTP.");
  check_fields();
  if (state_ == State::kRefused) return;
  parser_->beast.eager(true);
  state_ = State::kBody;
}

// What cannot be seen any more once Beast has parsed it.
void RequestReader::check_raw_head(std::string_view head) {
  size_t lines = 0;
  for (size_t at = head.find(kLineEnd); at != std::string_view::npos;
       at = head.find(kLineEnd, at + kLineEnd.size())) {
    ++lines;
    const size_t next = at + kLineEnd.size();
    if (next < head.size() && (head[next] == ' ' || head[next] == '\t'))
      return refuse(400, "A field of the request's head is folded over two lines.");
  }
  // The request line and the empty one are no fields.
  if (lines > limits_.head_fields + 2)
    return refuse(431, "The request's head has too many fields.");
  const std::string_view line = head.substr(0, head.find(kLineEnd));
  if (line.size() > limits_.target_bytes) refuse(414, "The request's target is too long.");
}

// The framing must be beyond doubt: whoever stands before us must have read the same length.
void RequestReader::check_fields() {
  const auto& message = parser_->beast.get();
  const size_t num_lengths = count_fields(message, http::field::content_length);
  const size_t num_codings = count_fields(message, http::field::transfer_encoding);
  request_.http_1_1 = message.version() == 11;
  if (count_fields(message, http::field::host) != 1)
    return refuse(400, "The request must have one Host field.");
  if (count_fields(message, http::field::authorization) > 1)
    return refuse(400, "The request has more than one Authorization field.");
  // Beast takes "5, 5" for 5.
  const std::string_view length = message[http::field::content_length];
  if (num_lengths > 1 || length.find_first_not_of("0123456789") != std::string_view::npos)
    return refuse(400, "The request must have one Content-Length, a number.");
  if (num_codings > 0) {
    if (num_lengths > 0)
      return refuse(400, "The request has both Content-Length and Transfer-Encoding.");
    if (num_codings > 1 || !request_.http_1_1 ||
        !beast::iequals(message[http::field::transfer_encoding], "chunked"))
      return refuse(400, "The only Transfer-Encoding taken is chunked, with HTTP/1.1.");
  }
  if (message.method() == http::verb::post && num_lengths + num_codings == 0)
    return refuse(411, "A POST request must have a Content-Length.");
  if (const auto coding = message[http::field::content_encoding];
      !coding.empty() && !beast::iequals(coding, "identity"))
    return refuse(415, "A body with a Content-Encoding is not taken: send it as it is.");
  if (const auto expect = message[http::field::expect]; !expect.empty()) {
    if (!beast::iequals(expect, "100-continue"))
      return refuse(417, "The only expectation known is 100-continue.");
    expects_continue_ = request_.http_1_1 && !parser_->beast.is_done();
  }
  // Read now: trailers of the body may add fields.
  request_.method = message.method_string();
  request_.target = message.target();
  request_.content_type = message[http::field::content_type];
  request_.authorization = message[http::field::authorization];
  request_.host = message[http::field::host];
  request_.origin = message[http::field::origin];
  request_.cors_method = message[http::field::access_control_request_method];
  request_.cors_headers = message[http::field::access_control_request_headers];
  request_.keep_alive = message.keep_alive();
  if (const std::string_view id = message["X-Request-Id"]; is_printable_id(id))
    request_.request_id = id;
}

void RequestReader::read_body() {
  auto& parser = parser_->beast;
  while (!parser.is_done() && !unread_.empty()) {
    beast::error_code error;
    const size_t used = parser.put(boost::asio::buffer(unread_), error);
    unread_.erase(0, used);
    body_received_ += used;
    if (error == http::error::body_limit) return refuse(413, "The request's body is too large.");
    if (error && error != http::error::need_more)
      return refuse(400, "The request's body is not framed as HTTP asks.");
    if (used == 0) break;
  }
  if (parser.is_done()) {
    // Beast 1.81 takes the fields of trailers for the request's own.
    if (count_fields(parser.get(), http::field::host) != 1)
      return refuse(400, "A trailer of the request's body names a Host.");
    request_.body = std::move(parser.get().body());
    state_ = State::kDone;
  } else if (unread_.size() > limits_.head_bytes) {
    refuse(400, "A chunk's head or the trailers of the request's body are too large.");
  }
}

HttpRequest RequestReader::take() {
  HttpRequest request = std::move(request_);
  request_ = {};
  parser_.reset();
  body_received_ = 0;
  expects_continue_ = false;
  state_ = State::kIdle;
  return request;
}

bool RequestReader::take_expect_continue() {
  return state_ == State::kBody && std::exchange(expects_continue_, false);
}

}  // namespace millrace
