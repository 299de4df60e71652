// The fields of a call's JSON object as typed values: each name is known and supported, known and
// refused, known and without effect here, or unknown. The table is in fields.cc. Any thread.
#pragma once

#include <boost/json/value.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "launch/api/openai.h"

namespace millrace {

// Points into the object it was read from. Absent and null are the same: nullopt, nullptr.
struct CallFields {
  const boost::json::value* messages = nullptr;
  const boost::json::value* prompt = nullptr;
  std::optional<std::string> model;
  std::optional<int64_t> max_tokens;
  std::optional<int64_t> max_completion_tokens;
  std::optional<int64_t> min_tokens;
  std::optional<int64_t> n;
  std::optional<int64_t> seed;
  std::optional<int64_t> top_k;
  std::optional<int64_t> top_logprobs;         // of a chat
  std::optional<int64_t> completion_logprobs;  // `logprobs` of a completion: how many
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<double> min_p;
  std::optional<double> repetition_penalty;
  std::optional<double> presence_penalty;
  std::optional<double> frequency_penalty;
  std::optional<bool> chat_logprobs;  // `logprobs` of a chat: whether
  std::optional<bool> stream;
  std::optional<bool> include_usage;  // stream_options.include_usage
  std::optional<bool> echo;
  std::optional<bool> ignore_eos;
  std::optional<bool> skip_special_tokens;
  std::optional<bool> include_stop_str_in_output;
  std::optional<bool> add_special_tokens;
  std::optional<bool> add_generation_prompt;
  std::optional<bool> return_token_ids;
  bool has_stream_options = false;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;  // not yet held against the vocabulary
};

// Throws RequestError naming the field. Unknown names are logged once each.
CallFields read_fields(ApiKind kind, const boost::json::object& body);

// An integer of JSON (5 or 5.0) within [min, max]; throws RequestError(param) otherwise.
int64_t read_integer(
    const boost::json::value& value, int64_t min, int64_t max, const std::string& param);

}  // namespace millrace
