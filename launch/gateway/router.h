// Which route a request asks for, and the head of an answer. Pure functions; any thread.
#pragma once

#include <string>
#include <string_view>

#include "launch/api/openai.h"

namespace millrace {

enum class Route { kModels, kModel, kCall, kHealth, kLive, kVersion, kMetrics, kLoad, kOpenApi };

struct RouteMatch {
  int status = 404;  // 200: `route` is it; 404: no such path; 405: not with this method
  Route route = Route::kLive;
  ApiKind kind = ApiKind::kChat;  // of kCall
  bool open = false;              // needs no key; all else does, unknown paths included
  std::string_view allow;         // with 405
  std::string model;              // of kModel, percent-decoded
};

// `target` as it stands in the request line; its query is ignored.
RouteMatch find_route(std::string_view method, std::string_view target);

// True for application/json, with no charset but UTF-8.
bool is_json(std::string_view content_type);

struct AnswerHead {
  int status = 200;
  std::string_view content_type = "application/json";
  std::string_view request_id;
  std::string_view allow;     // 405
  bool close = false;         // the connection ends after the answer
  int retry_after_s = 0;      // 0: not said
  bool event_stream = false;  // no length: chunked, or until the end of the connection
  bool chunked = false;
  size_t content_length = 0;
  std::string_view cors_origin;   // its pages may read the answer
  std::string_view cors_headers;  // and send these fields: with an answer to a preflight alone
};

// Status line and fields, the empty line included.
std::string write_head(const AnswerHead& head);

// `data` as one chunk of a chunked body.
std::string chunk(std::string_view data);

}  // namespace millrace
