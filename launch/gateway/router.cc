#include "launch/gateway/router.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <ctime>

namespace millrace {
namespace {

struct Entry {
  std::string_view path;
  std::string_view method;
  Route route;
};

constexpr Entry kRoutes[] = {
    {"/v1/models", "GET", Route::kModels},
    {"/v1/chat/completions", "POST", Route::kChat},
    {"/v1/completions", "POST", Route::kCompletions},
    {"/health", "GET", Route::kHealth},
    {"/ready", "GET", Route::kHealth},
    {"/ping", "GET", Route::kHealth},
    {"/live", "GET", Route::kLive},
    {"/version", "GET", Route::kVersion},
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

std::string_view reason(int status) {
  switch (status) {
    case 200: return "OK";
    case 400: return "Bad Request";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 411: return "Length Required";
    case 413: return "Content Too Large";
    case 414: return "URI Too Long";
    case 415: return "Unsupported Media Type";
    case 417: return "Expectation Failed";
    case 431: return "Request Header Fields Too Large";
    case 503: return "Service Unavailable";
    default: return "Internal Server Error";
  }
}

std::string http_date() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[64];
  return {text, std::strftime(text, sizeof(text), "%a, %d %b %Y %H:%M:%S GMT", &utc)};
}

std::string_view trim(std::string_view s) {
  while (!s.empty() && (s.front() == ' ' || s.front() == '\t')) s.remove_prefix(1);
  while (!s.empty() && (s.back() == ' ' || s.back() == '\t')) s.remove_suffix(1);
  return s;
}

std::string lower(std::string_view s) {
  std::string out(s);
  std::transform(out.begin(), out.end(), out.begin(),
      [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return out;
}

}  // namespace

RouteMatch find_route(std::string_view method, std::string_view target) {
  const std::string_view path = target.substr(0, target.find('?'));
  RouteMatch match;
  const auto take = [&](const Entry& entry) {
    match.route = entry.route;
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
  const size_t semicolon = content_type.find(';');
  if (lower(trim(content_type.substr(0, semicolon))) != "application/json") return false;
  if (semicolon == std::string_view::npos) return true;
  const std::string parameters = lower(trim(content_type.substr(semicolon + 1)));
  if (!parameters.starts_with("charset=")) return true;
  return parameters == "charset=utf-8" || parameters == "charset=\"utf-8\"";
}

std::string write_head(const AnswerHead& head) {
  std::string text = fmt::format(
      "HTTP/1.1 {} {}\r\nDate: {}\r\nServer: millrace\r\nContent-Type: {}\r\nx-request-id: {}\r\n",
      head.status, reason(head.status), http_date(), head.content_type, head.request_id);
  if (head.event_stream) text += "Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n";
  else text += fmt::format("Content-Length: {}\r\n", head.content_length);
  if (head.chunked) text += "Transfer-Encoding: chunked\r\n";
  if (!head.allow.empty()) text += fmt::format("Allow: {}\r\n", head.allow);
  if (head.retry_after_s > 0) text += fmt::format("Retry-After: {}\r\n", head.retry_after_s);
  // A bug of ours will be there again: clients would repeat the request twice for nothing.
  if (head.status == 500) text += "x-should-retry: false\r\n";
  if (head.close) text += "Connection: close\r\n";
  return text + "\r\n";
}

std::string chunk(std::string_view data) {
  return fmt::format("{:x}\r\n{}\r\n", data.size(), data);
}

}  // namespace millrace
