#include "launch/gateway/router.h"

#include <fmt/chrono.h>

#include <boost/algorithm/string/case_conv.hpp>
#include <boost/algorithm/string/trim.hpp>
#include <boost/beast/core/string.hpp>
#include <boost/beast/http/status.hpp>
#include <charconv>
#include <ctime>

namespace millrace {
namespace {

namespace beast = boost::beast;
namespace http = boost::beast::http;

struct Entry {
  std::string_view path;
  std::string_view method;
  Route route;
  ApiKind kind = ApiKind::kChat;
  bool open = false;
};

constexpr Entry kRoutes[] = {
    {"/v1/models", "GET", Route::kModels},
    {"/v1/chat/completions", "POST", Route::kCall, ApiKind::kChat},
    {"/v1/completions", "POST", Route::kCall, ApiKind::kCompletion},
    {"/tokenize", "POST", Route::kCall, ApiKind::kTokenize},
    {"/detokenize", "POST", Route::kCall, ApiKind::kDetokenize},
    {"/health", "GET", Route::kHealth, {}, true},
    {"/ready", "GET", Route::kHealth, {}, true},
    {"/ping", "GET", Route::kHealth, {}, true},
    {"/live", "GET", Route::kLive, {}, true},
    {"/version", "GET", Route::kVersion},
    {"/metrics", "GET", Route::kMetrics},
    {"/load", "GET", Route::kLoad},
    {"/openapi.json", "GET", Route::kOpenApi},
};
constexpr std::string_view kModelPrefix = "/v1/models/";

// Names of models may hold slashes, which clients write as they are or as %2F.
std::string percent_decode(std::string_view text) {
  std::string decoded;
  for (size_t i = 0; i < text.size(); ++i) {
    int value = 0;
    if (text[i] == '%' && i + 2 < text.size()) {
      const auto [end, error] = std::from_chars(&text[i + 1], &text[i + 1] + 2, value, 16);
      if (error == std::errc() && end == &text[i + 1] + 2) {
        decoded += static_cast<char>(value);
        i += 2;
        continue;
      }
    }
    decoded += text[i];
  }
  return decoded;
}

}  // namespace

RouteMatch find_route(std::string_view method, std::string_view target) {
  const std::string_view path = target.substr(0, target.find('?'));
  RouteMatch match;
  const auto take = [&](const Entry& entry) {
    match.route = entry.route;
    match.kind = entry.kind;
    match.open = entry.open;
    match.status = method == entry.method ? 200 : 405;
    if (match.status == 405) match.allow = entry.method;
  };
  for (const Entry& entry : kRoutes)
    if (path == entry.path) take(entry);
  if (path.starts_with(kModelPrefix) && path.size() > kModelPrefix.size()) {
    take({path, "GET", Route::kModel});
    match.model = percent_decode(path.substr(kModelPrefix.size()));
  }
  return match;
}

bool is_json(std::string_view content_type) {
  const std::string_view media_type = content_type.substr(0, content_type.find(';'));
  if (!beast::iequals(boost::trim_copy(std::string(media_type)), "application/json")) return false;
  if (media_type.size() == content_type.size()) return true;
  const std::string parameters = boost::to_lower_copy(
      boost::trim_copy(std::string(content_type.substr(media_type.size() + 1))));
  return !parameters.starts_with("charset=") || parameters == "charset=utf-8" ||
         parameters == "charset=\"utf-8\"";
}

std::string write_head(const AnswerHead& head) {
  std::string text = fmt::format(
      "HTTP/1.1 {} {}\r\nDate: {:%a, %d %b %Y %H:%M:%S} GMT\r\nServer: millrace\r\n"
      "Content-Type: {}\r\nx-request-id: {}\r\n",
      head.status, std::string_view(http::obsolete_reason(http::status(head.status))),
      fmt::gmtime(std::time(nullptr)), head.content_type, head.request_id);
  if (head.event_stream) text += "Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n";
  else text += fmt::format("Content-Length: {}\r\n", head.content_length);
  if (head.chunked) text += "Transfer-Encoding: chunked\r\n";
  if (!head.allow.empty()) text += fmt::format("Allow: {}\r\n", head.allow);
  if (head.retry_after_s > 0) text += fmt::format("Retry-After: {}\r\n", head.retry_after_s);
  if (head.status == 401) text += "WWW-Authenticate: Bearer\r\n";
  if (!head.cors_origin.empty())
    text += fmt::format(
        "Access-Control-Allow-Origin: {}\r\nVary: Origin\r\n"
        "Access-Control-Expose-Headers: x-request-id, retry-after\r\n",
        head.cors_origin);
  if (!head.cors_headers.empty())
    text += fmt::format(
        "Access-Control-Allow-Methods: GET, POST\r\nAccess-Control-Allow-Headers: {}\r\n"
        "Access-Control-Max-Age: 600\r\n",
        head.cors_headers);
  // A bug of ours will be there again: clients would repeat the request twice for nothing.
  if (head.status == 500) text += "x-should-retry: false\r\n";
  if (head.close) text += "Connection: close\r\n";
  return text + "\r\n";
}

std::string chunk(std::string_view data) {
  return fmt::format("{:x}\r\n{}\r\n", data.size(), data);
}

}  // namespace millrace
