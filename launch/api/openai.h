// OpenAI's JSON in, our Request out. The one validator: the HTTP gateway, the batch reader and the
// terminal all come through here. Pure functions on values; any thread.
#pragma once

#include <boost/json/fwd.hpp>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"
#include "engine/protocol/request.h"
#include "launch/api/model_context.h"

namespace millrace {

enum class ApiKind : uint8_t { kChat, kCompletion, kTokenize, kDetokenize };

// One call, parsed and validated: `choices.size()` engine requests (n, times prompts).
struct ApiCall {
  ApiKind kind = ApiKind::kChat;
  struct Choice {
    Request request;
    std::vector<int32_t> prompt_tail;  // last ids of the prompt, for the detokenizer
    std::string echo;                  // completions with echo: the prompt's text
  };
  std::vector<Choice> choices;    // n of the first prompt, n of the second, ...
  std::vector<std::string> stop;  // stop strings
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;  // in every chunk, as far as the answer has come
  bool include_stop_str_in_output = false;
  bool skip_special_tokens = true;
  bool return_token_ids = false;
  bool echo = false;
  bool only_prompt = false;      // of max_tokens 0: what the engine makes is not shown
  int32_t prompt_logprobs = -1;  // as SamplingParams::num_prompt_logprobs, which echo asks for too
  int32_t prompt_tokens = 0;     // summed over prompts, once per prompt
};

// Parses `body` strictly (launch/api/strict_json.h) and validates every field: unsupported known
// fields are refused by name, unknown ones ignored. Applies the chat template and tokenizes.
// Throws RequestError with `param`.
ApiCall parse_call(ApiKind kind, std::string_view body, const ModelContext& model);
// The same from an already parsed object.
ApiCall parse_call(ApiKind kind, const boost::json::object& body, const ModelContext& model);
// The answers to POST /tokenize and /detokenize, as vLLM has them; `kind` is one of the two. Throws
// RequestError with `param`.
std::string text_answer(ApiKind kind, std::string_view body, const ModelContext& model);
// The validator's last step, for requests made without JSON (generate, chat, bench): ranges, ids
// within the vocabulary, prompt + max_tokens within the context. Throws RequestError.
void validate(const Request& request, const ModelContext& model);

// The HTTP status of an error, and the body {"error": {message, type, param, code}}.
int http_status(ErrorCode code);
std::string error_json(const Status& status);
// The same for errors of HTTP itself; empty `param` and `code` become null.
std::string error_json(
    int http_status, std::string_view message, std::string_view param, std::string_view code);
// GET /v1/models and /v1/models/{id}.
std::string models_json(const ModelContext& model);
std::string model_json(const ModelContext& model);
// GET /openapi.json: docs/openapi.json.
std::string_view openapi_json();

}  // namespace millrace
