// The answers that need no engine: errors, and the list of models.
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>

#include "launch/api/openai.h"

namespace millrace {

namespace json = boost::json;

namespace {

json::object model_object(const ModelContext& model) {
  return {{"id", model.name}, {"object", "model"}, {"created", model.created},
      {"owned_by", "millrace"}, {"root", model.name}, {"parent", nullptr},
      {"max_model_len", model.max_model_len}};
}

}  // namespace

int http_status(ErrorCode code) {
  switch (code) {
    case ErrorCode::kOk: return 200;
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kContextLengthExceeded: return 400;
    case ErrorCode::kNotFound: return 404;
    case ErrorCode::kOverloaded:
    case ErrorCode::kUnavailable:
    case ErrorCode::kCancelled: return 503;
    case ErrorCode::kInternal: return 500;
    case ErrorCode::kTimeout: return 504;
  }
  return 500;
}

std::string error_json(const Status& status) {
  std::string_view code;
  if (status.code == ErrorCode::kContextLengthExceeded) code = "context_length_exceeded";
  if (status.code == ErrorCode::kNotFound) code = "model_not_found";
  if (status.code == ErrorCode::kOverloaded) code = "overloaded";
  if (status.code == ErrorCode::kUnavailable) code = "unavailable";
  if (status.code == ErrorCode::kTimeout) code = "timeout";
  return error_json(http_status(status.code), status.message, status.param, code);
}

std::string error_json(
    int http_status, std::string_view message, std::string_view param, std::string_view code) {
  const auto or_null = [](std::string_view s) {
    return s.empty() ? json::value(nullptr) : json::value(json::string_view(s.data(), s.size()));
  };
  json::object error;
  error["message"] = json::string_view(message.data(), message.size());
  error["type"] = http_status >= 500 ? "server_error" : "invalid_request_error";
  error["param"] = or_null(param);
  error["code"] = or_null(code);
  return json::serialize(json::object{{"error", std::move(error)}});
}

std::string model_json(const ModelContext& model) { return json::serialize(model_object(model)); }

std::string models_json(const ModelContext& model) {
  return json::serialize(json::object{{"object", "list"}, {"data", {model_object(model)}}});
}

}  // namespace millrace
