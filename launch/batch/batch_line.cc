#include "launch/batch/batch_line.h"

#include <fmt/format.h>

#include <boost/json/serialize.hpp>

#include "launch/api/open_call.h"
#include "launch/api/strict_json.h"

namespace millrace {
namespace {

namespace json = boost::json;

constexpr size_t kMaxCustomId = 1024;

const json::string* string_field(const json::object& line, const char* name) {
  const json::value* field = line.if_contains(name);
  return field != nullptr ? field->if_string() : nullptr;
}

std::string read_problem(json::object& object, BatchLine& line) {
  const json::string* id = string_field(object, "custom_id");
  if (id == nullptr || id->empty() || id->size() > kMaxCustomId)
    return fmt::format("`custom_id` must be a string of 1 to {} bytes.", kMaxCustomId);
  line.custom_id = std::string(*id);
  const json::string* method = string_field(object, "method");
  if (method == nullptr || *method != "POST") return "`method` must be \"POST\".";
  const json::string* url = string_field(object, "url");
  if (url != nullptr && *url == "/v1/completions") line.kind = ApiKind::kCompletion;
  else if (url == nullptr || *url != "/v1/chat/completions")
    return "`url` must be \"/v1/chat/completions\" or \"/v1/completions\".";
  json::value* body = object.if_contains("body");
  if (body == nullptr || !body->is_object()) return "`body` must be an object.";
  const json::value* stream = body->get_object().if_contains("stream");
  if (stream != nullptr && *stream != false && !stream->is_null())
    return "`stream` is not possible in a batch.";
  line.body = std::move(body->get_object());
  return "";
}

std::string quoted(const std::optional<std::string>& text) {
  return text ? json::serialize(json::string(*text)) : "null";
}

std::string write_line(const std::optional<std::string>& custom_id, const std::string& response,
    const std::string& error) {
  return fmt::format(R"({{"id":"batch_req_{}","custom_id":{},"response":{},"error":{}}})",
      random_id(), quoted(custom_id), response, error);
}

}  // namespace

BatchLine read_batch_line(std::string_view text) {
  BatchLine line;
  try {
    json::value value = parse_json(text);
    if (value.is_object()) line.problem = read_problem(value.get_object(), line);
    else line.problem = "The line must be a JSON object.";
  } catch (const RequestError& error) {
    line.problem = error.what();
  }
  return line;
}

std::string result_line(const std::string& custom_id, int status, const std::string& body) {
  return write_line(custom_id,
      fmt::format(
          R"({{"status_code":{},"request_id":"req-{}","body":{}}})", status, random_id(), body),
      "null");
}

std::string error_line(
    const std::optional<std::string>& custom_id, int64_t line_number, const std::string& problem) {
  const json::object error{{"code", "invalid_line"},
      {"message", fmt::format("Line {}: {}", line_number, problem)}, {"line", line_number}};
  return write_line(custom_id, "null", json::serialize(error));
}

}  // namespace millrace
