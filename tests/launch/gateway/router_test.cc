#include "launch/gateway/router.h"

#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <fstream>
#include <sstream>

namespace millrace {
namespace {

TEST(Router, FindsRoutes) {
  EXPECT_EQ(find_route("GET", "/v1/models").status, 200);
  EXPECT_EQ(find_route("GET", "/health?x=1").route, Route::kHealth);
  EXPECT_EQ(find_route("GET", "/metrics").route, Route::kMetrics);
  EXPECT_EQ(find_route("GET", "/load").route, Route::kLoad);
  const std::pair<const char*, ApiKind> calls[] = {{"/v1/chat/completions", ApiKind::kChat},
      {"/v1/completions", ApiKind::kCompletion}, {"/tokenize", ApiKind::kTokenize},
      {"/detokenize", ApiKind::kDetokenize}};
  for (const auto& [path, kind] : calls) {
    EXPECT_EQ(find_route("POST", path).route, Route::kCall) << path;
    EXPECT_EQ(find_route("POST", path).kind, kind) << path;
    EXPECT_EQ(find_route("GET", path).allow, "POST") << path;
  }
  EXPECT_EQ(find_route("GET", "/v1/models/a%2Fb/c%zz%4").model, "a/b/c%zz%4");
  for (const char* path : {"", "/", "//v1/models", "/v1/models/", "/V1/models", "/v1/models%2f",
           "http://h/v1/models", "/v1/chat/completions/", "*", "/v1/../health"})
    EXPECT_EQ(find_route("GET", path).status, 404) << path;
}

TEST(Router, NamesTheMethodThatWouldDo) {
  EXPECT_EQ(find_route("GET", "/v1/completions").status, 405);
  EXPECT_EQ(find_route("GET", "/v1/completions").allow, "POST");
  EXPECT_EQ(find_route("POST", "/v1/models").allow, "GET");
  EXPECT_EQ(find_route("DELETE", "/v1/models/x").allow, "GET");
  EXPECT_EQ(find_route("get", "/health").status, 405);
}

// "| `GET /path` | key | ..." for each route, as docs/api.md has it.
TEST(Router, TheTableOfRoutesIsWhatTheServerHas) {
  std::ifstream page("docs/api.md");
  size_t num_routes = 0;
  for (std::string line; std::getline(page, line);) {
    if (!line.starts_with("| `GET ") && !line.starts_with("| `POST ")) continue;
    std::string bar, method, path, key;
    std::istringstream(line) >> bar >> method >> path >> bar >> key;
    method.erase(0, 1);
    path.pop_back();
    const RouteMatch match = find_route(method, path);
    EXPECT_EQ(match.status, 200) << line;
    EXPECT_EQ(match.open, key == "no") << line;
    ++num_routes;
  }
  EXPECT_EQ(num_routes, 14u);
}

TEST(Router, TheOpenApiDocumentHasTheSameRoutes) {
  const boost::json::value document = boost::json::parse(openapi_json());
  const boost::json::object& paths = document.at("paths").as_object();
  for (const auto& path : paths) {
    const bool get = path.value().as_object().contains("get");
    const boost::json::object& call = path.value().at(get ? "get" : "post").as_object();
    const RouteMatch match = find_route(get ? "GET" : "POST", path.key());
    EXPECT_EQ(match.status, 200) << path.key();
    EXPECT_EQ(match.open, call.contains("security")) << path.key();
  }
  EXPECT_EQ(paths.size(), 14u);
}

TEST(Router, JsonBodies) {
  for (const char* type :
      {"application/json", "Application/JSON", "application/json; charset=utf-8",
          "application/json ;charset=\"UTF-8\"", "application/json;x=y"})
    EXPECT_TRUE(is_json(type)) << type;
  for (const char* type :
      {"", "text/plain", "application/jsonx", "application/json; charset=latin1",
          "application/x-www-form-urlencoded", "multipart/form-data"})
    EXPECT_FALSE(is_json(type)) << type;
}

TEST(Router, Heads) {
  const std::string head = write_head(
      {.status = 503, .request_id = "r", .close = true, .retry_after_s = 2, .content_length = 5});
  EXPECT_TRUE(head.starts_with("HTTP/1.1 503 Service Unavailable\r\nDate: "));
  for (const char* line : {"\r\nContent-Type: application/json\r\n", "\r\nx-request-id: r\r\n",
           "\r\nRetry-After: 2\r\n", "\r\nConnection: close\r\n", "\r\nContent-Length: 5\r\n"})
    EXPECT_NE(head.find(line), std::string::npos) << line;
  EXPECT_TRUE(head.ends_with("\r\n\r\n"));
  EXPECT_NE(write_head({.status = 500}).find("x-should-retry: false"), std::string::npos);
  EXPECT_EQ(chunk("0123456789abcdef"), "10\r\n0123456789abcdef\r\n");
}

}  // namespace
}  // namespace millrace
