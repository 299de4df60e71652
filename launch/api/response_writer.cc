#include <fmt/format.h>

#include <algorithm>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value_from.hpp>
#include <ranges>

#include "engine/base/json_text.h"
#include "launch/api/output.h"

namespace millrace {
namespace {

namespace json = boost::json;

constexpr float kLowestLogprob = -9999.0f;  // JSON has no -Infinity; other servers write the same

json::string_view view(std::string_view s) { return {s.data(), s.size()}; }

const char* finish_reason(FinishReason finish) {
  if (finish == FinishReason::kStop) return R"("stop")";
  if (finish == FinishReason::kLength) return R"("length")";
  return "null";
}

double finite(float logprob) {
  return logprob > kLowestLogprob ? static_cast<double>(logprob) : double{kLowestLogprob};
}

std::string token_bytes(const Tokenizer& tokenizer, int32_t id) {
  return id < tokenizer.vocab_size() ? tokenizer.token_bytes(id) : std::string();
}

json::object chat_entry(const Tokenizer& tokenizer, int32_t id, float logprob) {
  const std::string bytes = token_bytes(tokenizer, id);
  json::array list;
  for (const char c : bytes) list.emplace_back(static_cast<unsigned char>(c));
  return {{"token", valid_utf8(bytes)}, {"logprob", finite(logprob)}, {"bytes", std::move(list)}};
}

json::object chat_logprobs(const Tokenizer& tokenizer, const std::vector<OutputLogprob>& entries) {
  json::array content;
  for (const OutputLogprob& entry : entries) {
    json::object token = chat_entry(tokenizer, entry.sampled.token, entry.sampled.logprob);
    json::array top;
    for (const TokenLogprob& t : entry.sampled.top)
      top.push_back(chat_entry(tokenizer, t.token, t.logprob));
    token["top_logprobs"] = std::move(top);
    content.push_back(std::move(token));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

// Of the prompt if it is shown, then of the answer, with at most `num_top` others each.
json::object completion_logprobs(
    const Tokenizer& tokenizer, const OutputPiece& piece, bool with_prompt, size_t num_top) {
  json::array tokens, token_logprobs, top_logprobs, text_offset;
  const auto add = [&](const OutputLogprob& entry, bool is_first) {
    const std::string text = token_text(tokenizer, entry.sampled.token);
    tokens.emplace_back(view(text));
    text_offset.emplace_back(entry.text_offset);
    if (is_first) {
      token_logprobs.emplace_back(nullptr);
      top_logprobs.emplace_back(nullptr);
      return;
    }
    token_logprobs.emplace_back(finite(entry.sampled.logprob));
    // Keyed by text: of several tokens that look alike the most probable one stays.
    json::object top;
    for (const TokenLogprob& t : entry.sampled.top | std::views::take(num_top))
      top.emplace(view(token_text(tokenizer, t.token)), finite(t.logprob));
    top.emplace(view(text), finite(entry.sampled.logprob));
    top_logprobs.push_back(std::move(top));
  };
  if (with_prompt)
    for (const OutputLogprob& entry : piece.prompt) add(entry, &entry == &piece.prompt.front());
  for (const OutputLogprob& entry : piece.logprobs) add(entry, false);
  return {{"tokens", std::move(tokens)}, {"token_logprobs", std::move(token_logprobs)},
      {"top_logprobs", std::move(top_logprobs)}, {"text_offset", std::move(text_offset)}};
}

// As vLLM has them: null, then an object by id for each further token. `rank` is null where it is
// beyond the `num_top` that were asked for.
json::array prompt_logprobs(
    const Tokenizer& tokenizer, const std::vector<OutputLogprob>& prompt, size_t num_top) {
  json::array all;
  for (const OutputLogprob& entry : prompt) {
    if (all.empty()) {
      all.emplace_back(nullptr);
      continue;
    }
    json::object token;
    const auto add = [&](const TokenLogprob& t, const json::value& rank) {
      token[std::to_string(t.token)] = {{"logprob", finite(t.logprob)}, {"rank", rank},
          {"decoded_token", view(token_text(tokenizer, t.token))}};
    };
    add({entry.sampled.token, entry.sampled.logprob}, nullptr);
    int rank = 0;
    for (const TokenLogprob& t : entry.sampled.top | std::views::take(num_top)) add(t, ++rank);
    all.push_back(std::move(token));
  }
  return all;
}

}  // namespace

std::string token_text(const Tokenizer& tokenizer, int32_t id) {
  return valid_utf8(token_bytes(tokenizer, id));
}

// What every response and chunk of the call begins with: written once, for each token costs.
ResponseWriter::ResponseWriter(
    const ApiCall& call, const ModelContext& model, const std::string& id, int64_t created)
    : call_(call),
      model_(model),
      num_logprobs_(
          call.choices.empty() ? -1 : call.choices.front().request.sampling.num_logprobs) {
  const bool chat = call.kind == ApiKind::kChat;
  for (const bool chunk : {false, true}) {
    const char* object = !chat   ? "text_completion"
                         : chunk ? "chat.completion.chunk"
                                 : "chat.completion";
    const json::object head{
        {"id", id}, {"object", object}, {"created", created}, {"model", model.name}};
    std::string& begin = chunk ? chunk_begin_ : response_begin_;
    begin = json::serialize(head);
    begin.pop_back();
    begin += R"(,"choices":[)";
  }
}

std::string ResponseWriter::usage(int32_t completion_tokens) const {
  return fmt::format(R"({{"prompt_tokens":{},"completion_tokens":{},"total_tokens":{}}})",
      call_.prompt_tokens, completion_tokens, call_.prompt_tokens + completion_tokens);
}

void ResponseWriter::add_prompt_logprobs(std::string& out, const OutputPiece& piece) const {
  if (call_.prompt_logprobs < 0) return;
  (out += R"(,"prompt_logprobs":)") += json::serialize(
      prompt_logprobs(*model_.tokenizer, piece.prompt, static_cast<size_t>(call_.prompt_logprobs)));
}

void ResponseWriter::add_choice(
    std::string& out, size_t choice, const OutputPiece& piece, bool first, bool chunk) const {
  (out += R"({"index":)") += std::to_string(choice);
  if (call_.kind == ApiKind::kCompletion) {
    out += R"(,"text":)";
    append_json_string(out, first ? call_.choices[choice].echo + piece.text : piece.text);
  } else {
    out += chunk ? R"(,"delta":{)" : R"(,"message":{)";
    if (first) out += R"("role":"assistant",)";
    if (first || !piece.text.empty()) {
      out += R"("content":)";
      append_json_string(out, piece.text);
    }
    out += chunk ? "}" : R"(,"refusal":null})";
  }
  out += R"(,"logprobs":)";
  const bool with_logprobs = num_logprobs_ >= 0 && (!chunk || piece.has_logprobs());
  out += !with_logprobs
             ? "null"
             : json::serialize(call_.kind == ApiKind::kChat
                                   ? chat_logprobs(*model_.tokenizer, piece.logprobs)
                                   : completion_logprobs(*model_.tokenizer, piece, call_.echo,
                                         static_cast<size_t>(num_logprobs_)));
  (out += R"(,"finish_reason":)") += finish_reason(piece.finish);
  if (call_.return_token_ids)
    (out += R"(,"token_ids":)") += json::serialize(json::value_from(piece.token_ids));
  if (!chunk && call_.kind == ApiKind::kCompletion) add_prompt_logprobs(out, piece);
  out += '}';
}

std::string ResponseWriter::chunk(
    size_t choice, const OutputPiece& piece, bool first, int32_t completion_tokens) const {
  std::string out = chunk_begin_;
  add_choice(out, choice, piece, first, /*chunk=*/true);
  out += ']';
  if (call_.continuous_usage) (out += R"(,"usage":)") += usage(completion_tokens);
  else if (call_.include_usage) out += R"(,"usage":null)";
  return out += '}';
}

std::string ResponseWriter::usage_chunk(int32_t completion_tokens) const {
  return chunk_begin_ + R"(],"usage":)" + usage(completion_tokens) + '}';
}

std::string ResponseWriter::response(
    const std::vector<OutputPiece>& choices, int32_t completion_tokens) const {
  std::string out = response_begin_;
  for (size_t i = 0; i < choices.size(); ++i) {
    if (i > 0) out += ',';
    add_choice(out, i, choices[i], /*first=*/true, /*chunk=*/false);
  }
  out += ']';
  // A chat's choices have one prompt.
  if (call_.kind == ApiKind::kChat && !choices.empty()) add_prompt_logprobs(out, choices.front());
  return out + R"(,"usage":)" + usage(completion_tokens) + '}';
}

}  // namespace millrace
