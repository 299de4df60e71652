// From `messages` or `prompt` to token ids: the chat template and the tokenizer are applied here,
// the slow part of a call. Pure functions; any thread.
#pragma once

#include <boost/json/value.hpp>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "launch/api/model_context.h"

namespace millrace {

inline constexpr size_t kMaxMessages = 4096;
inline constexpr size_t kMaxPrompts = 1024;

// At least one id, each within the vocabulary.
struct Prompt {
  std::vector<int32_t> ids;
  std::string text;  // completions that echo: as shown before the answer
};

// The ids of a text, perhaps none. Throws RequestError(param), also for a text that is certainly
// longer than the context.
std::vector<int32_t> encode_text(
    std::string_view text, bool add_special, const ModelContext& model, const std::string& param);

// A chat's messages as the model's template writes them. Throws RequestError.
Prompt chat_prompt(const boost::json::value& messages, bool add_special, bool add_generation_prompt,
    const ModelContext& model);

// A string, a list of strings, a list of ids or a list of lists of ids. Throws RequestError.
std::vector<Prompt> completion_prompts(
    const boost::json::value& prompt, bool add_special, bool with_text, const ModelContext& model);

// The answer to a prompt that leaves no room, or to max_tokens that ask for more than is left.
[[noreturn]] void refuse_length(
    const ModelContext& model, size_t prompt_tokens, int64_t max_tokens, const std::string& param);

}  // namespace millrace
