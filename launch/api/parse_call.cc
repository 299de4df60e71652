// The way of a call: fields, then prompts, then one engine request per choice.
#include <fmt/format.h>

#include <algorithm>
#include <boost/json/object.hpp>
#include <limits>
#include <random>

#include "launch/api/fields.h"
#include "launch/api/openai.h"
#include "launch/api/prompts.h"
#include "launch/api/strict_json.h"

namespace millrace {
namespace {

namespace json = boost::json;

constexpr int32_t kDefaultCompletionTokens = 16;
constexpr size_t kMaxChoices = 1024;               // n times prompts
constexpr size_t kMaxPromptTokens = 16 * 1 << 20;  // of all choices: 64 MiB of ids
constexpr size_t kMaxPromptLogprobs = 1 << 19;     // of all choices: some 100 MB of JSON
constexpr size_t kPromptTail = 8;
constexpr float kGreedyBelow = 1e-5f;  // dividing logits by less overflows a float

void require(bool condition, const std::string& message, const std::string& param) {
  if (!condition) throw RequestError(ErrorCode::kInvalidArgument, message, param);
}

uint64_t random_seed() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

void check_together(const CallFields& fields, const ModelContext& model) {
  check_model(fields, model);
  if (fields.call.kind == ApiKind::kChat)
    require(fields.messages != nullptr, "`messages` is missing.", "messages");
  else require(fields.prompt != nullptr, "`prompt` is missing.", "prompt");
  require(!fields.has_stream_options || fields.call.stream,
      "`stream_options` is allowed only with `stream`: true.", "stream_options");
  require(fields.top_logprobs == 0 || fields.chat_logprobs,
      "`top_logprobs` needs `logprobs`: true.", "top_logprobs");
  require(fields.request.priority == 0 || model.allow_priority,
      "`priority` other than 0 needs a server that was started with --scheduling-policy priority.",
      "priority");
  require(fields.max_tokens != 0 || fields.call.echo,
      "`max_tokens` must be at least 1, or 0 to get no more than an `echo`.", "max_tokens");
  require(fields.call.prompt_logprobs < 0 || !fields.call.stream,
      "`prompt_logprobs` come with the whole answer: not with `stream`: true.", "prompt_logprobs");
}

// How many tokens the answer may have, given what the prompt leaves.
int32_t read_max_tokens(const CallFields& fields, size_t prompt_tokens, const ModelContext& model) {
  const ApiKind kind = fields.call.kind;
  const int64_t left = model.max_model_len - static_cast<int64_t>(prompt_tokens);
  if (left < 1)
    refuse_length(model, prompt_tokens, 0, kind == ApiKind::kChat ? "messages" : "prompt");
  const bool newer = fields.max_completion_tokens.has_value();
  const std::optional<int64_t>& asked = newer ? fields.max_completion_tokens : fields.max_tokens;
  if (asked && *asked > left)
    refuse_length(model, prompt_tokens, *asked, newer ? "max_completion_tokens" : "max_tokens");
  const int64_t otherwise = kind == ApiKind::kChat ? left : kDefaultCompletionTokens;
  // The engine samples at least one.
  return static_cast<int32_t>(std::max<int64_t>(asked.value_or(std::min(otherwise, left)), 1));
}

// logit_bias, bad_words and allowed_token_ids as one list.
void read_biases(const CallFields& fields, const ModelContext& model, Request& request) {
  std::map<int32_t, float> biases = fields.logit_bias;
  for (const std::string& word : fields.bad_words) {
    const auto id = model.tokenizer->encode(word, /*add_special=*/false);
    const auto after_space = model.tokenizer->encode(" " + word, /*add_special=*/false);
    if (id.size() != 1 && after_space.size() != 1)
      refuse_field("bad_words", "must hold words that are one token of this model each");
    for (const auto& ids : {id, after_space})
      if (ids.size() == 1) biases[ids[0]] = kForbidden;
  }
  request.sampling.only_listed = !fields.allowed_token_ids.empty();
  if (request.sampling.only_listed) {
    std::map<int32_t, float> allowed;
    for (const int32_t id : fields.allowed_token_ids) {
      require(id < model.vocab_size,
          fmt::format("`allowed_token_ids` must be from 0 to {}.", model.vocab_size - 1),
          "allowed_token_ids");
      if (const auto bias = biases.find(id); bias == biases.end()) allowed[id] = 0;
      else if (bias->second > kForbidden) allowed.insert(*bias);
    }
    if (allowed.empty()) refuse_field("allowed_token_ids", "must have one that is no bad word");
    biases = std::move(allowed);
  }
  if (biases.size() > kMaxLogitBias)
    refuse_field("bad_words",
        fmt::format("and `logit_bias` name more than {} tokens together", kMaxLogitBias));
  for (const auto& [token, bias] : biases) request.logit_bias.push_back({token, bias});
}

// What is the same for every choice of every prompt.
Request make_request(const CallFields& fields, const ModelContext& model) {
  Request request = fields.request;
  SamplingParams& sampling = request.sampling;
  if (sampling.temperature < kGreedyBelow) sampling.temperature = 0;
  // OpenAI takes 0 for "the most probable token alone".
  sampling.top_p = std::max(sampling.top_p, std::numeric_limits<float>::min());
  if (fields.chat_logprobs) sampling.num_logprobs = fields.top_logprobs;
  sampling.num_prompt_logprobs =
      std::max(fields.call.prompt_logprobs, fields.call.echo ? sampling.num_logprobs : -1);
  read_biases(fields, model, request);
  if (!fields.ignore_eos)
    request.stop_token_ids.insert(
        request.stop_token_ids.end(), model.eos_token_ids.begin(), model.eos_token_ids.end());
  return request;
}

// n choices of one prompt: they differ by their seeds alone.
void add_choices(ApiCall& call, const CallFields& fields, const Request& request, Prompt prompt,
    const ModelContext& model) {
  call.prompt_tokens += static_cast<int32_t>(prompt.ids.size());
  const size_t tail = std::min(kPromptTail, prompt.ids.size());
  ApiCall::Choice choice{.request = request, .echo = std::move(prompt.text)};
  choice.prompt_tail.assign(prompt.ids.end() - static_cast<std::ptrdiff_t>(tail), prompt.ids.end());
  choice.request.max_tokens = read_max_tokens(fields, prompt.ids.size(), model);
  choice.request.prompt = std::move(prompt.ids);
  validate(choice.request, model);
  for (int32_t i = 0; i < fields.n; ++i) {
    call.choices.push_back(choice);
    // A chat shows them once.
    if (i > 0 && call.kind == ApiKind::kChat)
      call.choices.back().request.sampling.num_prompt_logprobs = -1;
    call.choices.back().request.sampling.seed =
        fields.seed ? static_cast<uint64_t>(*fields.seed) + static_cast<uint64_t>(i)
                    : random_seed();
  }
}

}  // namespace

ApiCall parse_call(ApiKind kind, std::string_view body, const ModelContext& model) {
  return parse_call(kind, parse_json_object(body), model);
}

ApiCall parse_call(ApiKind kind, const json::object& body, const ModelContext& model) {
  const CallFields fields = read_fields(kind, body, model.strict_fields);
  check_together(fields, model);
  std::vector<Prompt> prompts;
  if (kind == ApiKind::kChat)
    // A template writes its own special tokens.
    prompts.push_back(chat_prompt(*fields.messages, fields.add_special_tokens.value_or(false),
        fields.add_generation_prompt, model));
  else
    prompts = completion_prompts(
        *fields.prompt, fields.add_special_tokens.value_or(true), fields.call.echo, model);
  // Counted before anything is copied n times.
  const auto n = static_cast<size_t>(fields.n);
  size_t prompt_tokens = 0;
  for (const Prompt& prompt : prompts) prompt_tokens += prompt.ids.size();
  require(prompts.size() * n <= kMaxChoices,
      fmt::format("`n` times the number of prompts must be at most {}.", kMaxChoices), "n");
  require(prompt_tokens * n <= kMaxPromptTokens,
      fmt::format("All prompts, `n` times, must have at most {} tokens.", kMaxPromptTokens), "n");
  ApiCall call = fields.call;
  call.only_prompt = fields.max_tokens == 0;
  const Request request = make_request(fields, model);
  const int32_t top = request.sampling.num_prompt_logprobs;
  require(prompt_tokens * n * static_cast<size_t>(top + 1) <= kMaxPromptLogprobs,
      fmt::format("All prompts, `n` times, must have at most {} logprobs.", kMaxPromptLogprobs),
      call.prompt_logprobs == top ? "prompt_logprobs" : "logprobs");
  for (Prompt& prompt : prompts) add_choices(call, fields, request, std::move(prompt), model);
  return call;
}

void validate(const Request& request, const ModelContext& model) {
  const SamplingParams& s = request.sampling;
  const auto in_vocabulary = [&](int32_t id) { return id >= 0 && id < model.vocab_size; };
  require(!request.prompt.empty(), "The prompt is empty.", "prompt");
  require(std::all_of(request.prompt.begin(), request.prompt.end(), in_vocabulary),
      fmt::format("The prompt's ids must be from 0 to {}.", model.vocab_size - 1), "prompt");
  require(request.max_tokens >= 1, "`max_tokens` must be at least 1.", "max_tokens");
  if (request.prompt.size() >= static_cast<size_t>(model.max_model_len))
    refuse_length(model, request.prompt.size(), 0, "prompt");
  if (request.prompt.size() + static_cast<size_t>(request.max_tokens) >
      static_cast<size_t>(model.max_model_len))
    refuse_length(model, request.prompt.size(), request.max_tokens, "max_tokens");
  require(request.min_tokens >= 0 && request.min_tokens <= request.max_tokens,
      fmt::format(
          "`min_tokens` must be from 0 to the {} tokens the answer may have.", request.max_tokens),
      "min_tokens");
  require(std::all_of(request.stop_token_ids.begin(), request.stop_token_ids.end(), in_vocabulary),
      fmt::format("`stop_token_ids` must be from 0 to {}.", model.vocab_size - 1),
      "stop_token_ids");
  require(s.top_p > 0 && s.top_p <= 1, "`top_p` must be above 0 and at most 1.", "top_p");
  require(s.top_k >= 0, "`top_k` must be -1, 0 or the number of tokens to keep.", "top_k");
  struct Range {
    const char* name;
    float value, min, max;
  };
  for (const auto& [name, value, min, max] :
      {Range{"temperature", s.temperature, 0, 2}, Range{"min_p", s.min_p, 0, 1},
          Range{"repetition_penalty", s.repetition_penalty, 0.01f, 100},
          Range{"presence_penalty", s.presence_penalty, -2, 2},
          Range{"frequency_penalty", s.frequency_penalty, -2, 2}})
    require(value >= min && value <= max,
        fmt::format("`{}` must be from {} to {}.", name, min, max), name);
  const int32_t most = std::min(kMaxLogprobs, model.vocab_size);
  for (const auto& [name, asked] :
      {std::pair("logprobs", s.num_logprobs), std::pair("prompt_logprobs", s.num_prompt_logprobs)})
    require(asked >= -1 && asked <= most,
        fmt::format("At most {} logprobs can be asked for.", most), name);
  require(within_limits(request.logit_bias) &&
              (request.logit_bias.empty() || in_vocabulary(request.logit_bias.back().token)),
      fmt::format("`logit_bias` must have at most {} ids, from 0 to {}.", kMaxLogitBias,
          model.vocab_size - 1),
      "logit_bias");
}

}  // namespace millrace
