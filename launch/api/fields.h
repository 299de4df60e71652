// The fields of a call's JSON object as typed values: each name is known and supported, known and
// refused, known and without effect here, or unknown. The table is in fields.cc. Any thread.
#pragma once

#include <boost/json/value.hpp>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "launch/api/openai.h"

namespace millrace {

// What the fields say of a call, each checked alone; points into the object it was read from.
// Absent and null are the same.
struct CallFields {
  const boost::json::value* messages = nullptr;
  const boost::json::value* prompt = nullptr;
  const boost::json::value* tokens = nullptr;  // to be turned into text
  ApiCall call;                                // its flags and stop strings; no choice yet
  Request request;  // what all choices share; ids are not yet held against the vocabulary
  std::optional<std::string> model;
  std::optional<int64_t> max_tokens;
  std::optional<int64_t> max_completion_tokens;
  std::optional<int64_t> seed;
  int32_t n = 1;
  bool chat_logprobs = false;  // `logprobs` of a chat: whether
  int32_t top_logprobs = 0;    // of a chat: how many
  bool has_stream_options = false;
  bool ignore_eos = false;
  std::optional<bool> add_special_tokens;
  bool add_generation_prompt = true;
  bool return_token_strs = false;
  std::map<int32_t, float> logit_bias;  // this and the next two: of the request's
  std::vector<int32_t> allowed_token_ids;
  std::vector<std::string> bad_words;

  SamplingParams& sampling() { return request.sampling; }
};

// Throws RequestError(param): "`param` what."
[[noreturn]] void refuse_field(std::string_view param, std::string_view what);

// Throws RequestError naming the field. Unknown names are refused when `strict`, else logged once
// each.
CallFields read_fields(ApiKind kind, const boost::json::object& body, bool strict);

// Throws RequestError(param "model") when a model is named that is not this one.
void check_model(const CallFields& fields, const ModelContext& model);

// An integer of JSON (5 or 5.0) within [min, max]; throws RequestError(param) otherwise.
int64_t read_integer(
    const boost::json::value& value, int64_t min, int64_t max, const std::string& param);

}  // namespace millrace
