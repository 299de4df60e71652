// One line of a batch as OpenAI writes it: {custom_id, method, url, body} in, {id, custom_id,
// response, error} out. Pure functions; any thread.
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "engine/base/status.h"
#include "launch/api/openai.h"

namespace millrace {

struct BatchLine {
  std::optional<std::string> custom_id;  // none when the line does not say it
  ApiKind kind = ApiKind::kChat;
  boost::json::object body;
  std::string problem;  // why the line cannot be asked, or ""
};

BatchLine read_batch_line(std::string_view text);

// The answer of an API call: 200 and the response, or another status and an error body. `body` is
// JSON already.
std::string result_line(const std::string& custom_id, int status, const std::string& body);
// The answer to a line that never became a call; it names the line when it has no custom_id.
std::string error_line(
    const std::optional<std::string>& custom_id, int64_t line_number, const std::string& problem);

}  // namespace millrace
