#include "launch/api/fields.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <mutex>
#include <set>

#include "engine/base/log.h"
#include "engine/base/siphash.h"

namespace millrace {
namespace {

namespace json = boost::json;

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr int64_t kMinInt64 = std::numeric_limits<int64_t>::min();
constexpr int64_t kMaxInt64 = std::numeric_limits<int64_t>::max();
constexpr size_t kMaxStops = 16;
constexpr size_t kMaxStopBytes = 1024;
constexpr size_t kMaxStopTokens = 128;
constexpr size_t kMaxSaltBytes = 128;

// A field's value that is neither absent nor null, held to a type and a range.
struct Value {
  const json::value& json;
  std::string_view name;

  int64_t integer(int64_t min, int64_t max = kMaxInt32) const {
    return read_integer(json, min, max, std::string(name));
  }
  int32_t integer32(int32_t min, int32_t max = kMaxInt32) const {
    return static_cast<int32_t>(integer(min, max));
  }
  float number(double min, double max) const {
    const double number = json.is_number() ? json.to_number<double>() : NAN;
    if (!(number >= min && number <= max))
      refuse_field(name, fmt::format("must be a number from {} to {}", min, max));
    return static_cast<float>(number);
  }
  bool boolean() const {
    if (!json.is_bool()) refuse_field(name, "must be true or false");
    return json.get_bool();
  }
};

bool empty(const json::value& v) {
  return v.is_null() || (v.is_bool() && !v.get_bool()) || (v.is_array() && v.get_array().empty()) ||
         (v.is_object() && v.get_object().empty()) || (v.is_string() && v.get_string().empty());
}
template <int kNumber>
bool is_number(const json::value& v) {
  return (v.is_int64() && v.get_int64() == kNumber) ||
         (v.is_double() && v.get_double() == double{kNumber});
}
bool is_text_format(const json::value& v) {
  const json::object* format = v.if_object();
  const json::value* type = format != nullptr ? format->if_contains("type") : nullptr;
  return type != nullptr && type->is_string() && type->get_string() == "text";
}
bool is_none_or_auto(const json::value& v) {
  return v.is_string() && (v.get_string() == "none" || v.get_string() == "auto");
}
bool is_none(const json::value& v) { return v.is_string() && v.get_string() == "none"; }
bool is_text_only(const json::value& v) {
  return v.is_array() && v.get_array().size() == 1 && v.get_array()[0] == "text";
}
bool at_most_one(const json::value& v) { return is_number<0>(v) || is_number<1>(v); }

void read_model(Value value, CallFields& fields) {
  if (!value.json.is_string()) refuse_field("model", "must be a string");
  fields.model = std::string(value.json.get_string());
}

void read_stop(Value field, CallFields& fields) {
  const json::value& value = field.json;
  const auto add = [&](const json::value& item) {
    if (!item.is_string()) refuse_field("stop", "must be a string or an array of strings");
    if (item.get_string().empty()) refuse_field("stop", "must not hold an empty string");
    if (item.get_string().size() > kMaxStopBytes)
      refuse_field("stop", fmt::format("must hold strings of at most {} bytes", kMaxStopBytes));
    fields.call.stop.emplace_back(item.get_string());
  };
  if (!value.is_array()) return add(value);
  if (value.get_array().size() > kMaxStops)
    refuse_field("stop", fmt::format("must hold at most {} strings", kMaxStops));
  for (const json::value& item : value.get_array()) add(item);
}

void read_ids(Value value, size_t most, std::vector<int32_t>& ids) {
  const json::array* list = value.json.if_array();
  if (list == nullptr || list->size() > most)
    refuse_field(value.name, fmt::format("must be an array of at most {} ids", most));
  for (const json::value& item : *list) ids.push_back(Value{item, value.name}.integer32(0));
}

// Ids are JSON's keys: as a number is written, so that none is there twice.
void read_logit_bias(Value value, CallFields& fields) {
  const json::object* biases = value.json.if_object();
  if (biases == nullptr || biases->size() > kMaxLogitBias)
    refuse_field(value.name,
        fmt::format("must be an object of at most {} token ids and their biases", kMaxLogitBias));
  for (const auto& [key, bias] : *biases) {
    int32_t id = -1;
    std::from_chars(key.data(), key.data() + key.size(), id);
    if (id < 0 || std::to_string(id) != std::string_view(key))
      refuse_field(value.name, "must have token ids as its keys, such as \"50256\"");
    fields.logit_bias[id] = Value{bias, value.name}.number(-100, 100);
  }
}

void read_bad_words(Value value, CallFields& fields) {
  const json::array* list = value.json.if_array();
  const auto is_word = [](const json::value& v) {
    return v.is_string() && !empty(v) && v.get_string().size() <= kMaxStopBytes;
  };
  if (list == nullptr || list->size() > kMaxLogitBias || !std::ranges::all_of(*list, is_word))
    refuse_field(value.name, fmt::format("must be an array of at most {} words of at most {} bytes",
                                 kMaxLogitBias, kMaxStopBytes));
  for (const json::value& item : *list) fields.bad_words.emplace_back(item.get_string());
}

// Requests of one salt share cached prefixes, and only they. What the client wrote stays here; the
// engine sees a number that no client can choose.
void read_cache_salt(Value value, CallFields& fields) {
  static const SipKey key = random_sip_key();
  const json::string* salt = value.json.if_string();
  const auto is_printable = [](char c) { return c >= ' ' && c <= '~'; };
  if (salt == nullptr || salt->empty() || salt->size() > kMaxSaltBytes ||
      !std::ranges::all_of(*salt, is_printable))
    refuse_field(value.name,
        fmt::format("must be a string of 1 to {} printable ASCII bytes", kMaxSaltBytes));
  fields.request.cache_salt =
      siphash(key, {reinterpret_cast<const uint8_t*>(salt->data()), salt->size()});
}

void read_stream_options(Value value, CallFields& fields) {
  if (!value.json.is_object()) refuse_field("stream_options", "must be an object");
  fields.has_stream_options = true;
  for (const auto& [key, option] : value.json.get_object()) {
    if (key == "include_usage" && !option.is_null())
      fields.call.include_usage = Value{option, "stream_options.include_usage"}.boolean();
    if (key == "continuous_usage_stats" && !option.is_null())
      fields.call.continuous_usage =
          Value{option, "stream_options.continuous_usage_stats"}.boolean();
    if (key == "include_obfuscation" && !empty(option))
      refuse_field("stream_options.include_obfuscation", "is not supported by this server");
  }
}

enum Kinds {
  kChat = 1,
  kCompletion = 2,
  kBoth = kChat | kCompletion,
  kTokenize = 4,
  kDetokenize = 8,
  kAll = kBoth | kTokenize | kDetokenize,
  kOfMessages = kChat | kTokenize,
  kOfPrompt = kCompletion | kTokenize,
  kOfText = kBoth | kTokenize,
};
constexpr Kinds kKinds[] = {kChat, kCompletion, kTokenize, kDetokenize};  // by ApiKind

struct Field {
  std::string_view name;
  Kinds kinds;
  void (*read)(Value value, CallFields& fields);
};

using F = CallFields;
constexpr Field kFields[] = {
    {"messages", kOfMessages, [](Value v, F& f) { f.messages = &v.json; }},
    {"prompt", kOfPrompt, [](Value v, F& f) { f.prompt = &v.json; }},
    {"tokens", kDetokenize, [](Value v, F& f) { f.tokens = &v.json; }},
    {"model", kAll, read_model},
    // How much, and when to stop.
    {"max_tokens", kBoth, [](Value v, F& f) { f.max_tokens = v.integer(0); }},
    {"max_completion_tokens", kChat, [](Value v, F& f) { f.max_completion_tokens = v.integer(1); }},
    {"min_tokens", kBoth, [](Value v, F& f) { f.request.min_tokens = v.integer32(0); }},
    {"stop", kBoth, read_stop},
    {"stop_token_ids", kBoth,
        [](Value v, F& f) { read_ids(v, kMaxStopTokens, f.request.stop_token_ids); }},
    {"ignore_eos", kBoth, [](Value v, F& f) { f.ignore_eos = v.boolean(); }},
    {"n", kBoth, [](Value v, F& f) { f.n = v.integer32(1, 128); }},
    // How a token is drawn.
    {"temperature", kBoth, [](Value v, F& f) { f.sampling().temperature = v.number(0, 2); }},
    {"top_p", kBoth, [](Value v, F& f) { f.sampling().top_p = v.number(0, 1); }},
    {"top_k", kBoth, [](Value v, F& f) { f.sampling().top_k = std::max(v.integer32(-1), 0); }},
    {"min_p", kBoth, [](Value v, F& f) { f.sampling().min_p = v.number(0, 1); }},
    {"repetition_penalty", kBoth,
        [](Value v, F& f) { f.sampling().repetition_penalty = v.number(0.01, 100); }},
    {"presence_penalty", kBoth,
        [](Value v, F& f) { f.sampling().presence_penalty = v.number(-2, 2); }},
    {"frequency_penalty", kBoth,
        [](Value v, F& f) { f.sampling().frequency_penalty = v.number(-2, 2); }},
    // Lower goes first, as in vLLM.
    {"priority", kBoth,
        [](Value v, F& f) { f.request.priority = -v.integer32(-kMaxInt32, kMaxInt32); }},
    {"logit_bias", kBoth, read_logit_bias},
    {"allowed_token_ids", kBoth,
        [](Value v, F& f) { read_ids(v, kMaxLogitBias, f.allowed_token_ids); }},
    {"bad_words", kBoth, read_bad_words},
    {"seed", kBoth, [](Value v, F& f) { f.seed = v.integer(kMinInt64, kMaxInt64); }},
    // What the answer shows.
    {"stream", kBoth, [](Value v, F& f) { f.call.stream = v.boolean(); }},
    {"stream_options", kBoth, read_stream_options},
    {"logprobs", kChat, [](Value v, F& f) { f.chat_logprobs = v.boolean(); }},
    {"top_logprobs", kChat, [](Value v, F& f) { f.top_logprobs = v.integer32(0, 20); }},
    {"logprobs", kCompletion,
        [](Value v, F& f) { f.sampling().num_logprobs = v.integer32(0, 20); }},
    {"prompt_logprobs", kBoth, [](Value v, F& f) { f.call.prompt_logprobs = v.integer32(0, 20); }},
    {"echo", kCompletion, [](Value v, F& f) { f.call.echo = v.boolean(); }},
    {"skip_special_tokens", kBoth, [](Value v, F& f) { f.call.skip_special_tokens = v.boolean(); }},
    {"include_stop_str_in_output", kBoth,
        [](Value v, F& f) { f.call.include_stop_str_in_output = v.boolean(); }},
    {"return_token_ids", kBoth, [](Value v, F& f) { f.call.return_token_ids = v.boolean(); }},
    // How the prompt is made.
    {"add_special_tokens", kOfText, [](Value v, F& f) { f.add_special_tokens = v.boolean(); }},
    {"cache_salt", kBoth, read_cache_salt},
    {"add_generation_prompt", kOfMessages,
        [](Value v, F& f) { f.add_generation_prompt = v.boolean(); }},
    {"return_token_strs", kTokenize, [](Value v, F& f) { f.return_token_strs = v.boolean(); }},
};

// They ask for what this server does not do, unless `harmless` says that the value asks for
// nothing.
struct Refused {
  Kinds kinds;
  bool (*harmless)(const json::value& value);
  std::vector<std::string_view> names;
};
const Refused kRefused[] = {
    {kBoth, empty,
        {"guided_choice", "guided_grammar", "guided_json", "guided_regex",
            "return_tokens_as_token_ids", "structured_outputs", "truncate_prompt_tokens",
            "use_beam_search"}},
    {kOfText, empty, {"chat_template", "chat_template_kwargs"}},
    {kChat, empty, {"audio", "documents", "echo", "functions", "prediction", "web_search_options"}},
    {kOfMessages, empty, {"continue_final_message", "tools"}},
    {kCompletion, empty, {"prompt_embeds", "suffix"}},
    {kBoth, at_most_one, {"best_of"}},
    {kBoth, is_number<1>, {"length_penalty"}},
    {kBoth, is_text_format, {"response_format"}},
    {kChat, is_none_or_auto, {"function_call", "tool_choice"}},
    {kChat, is_none, {"reasoning_effort"}},
    {kChat, is_text_only, {"modalities"}},
};

// They change nothing about the answer: bookkeeping of OpenAI's service, or hints.
struct NoEffect {
  Kinds kinds;
  std::vector<std::string_view> names;
};
const NoEffect kNoEffect[] = {
    {kBoth,
        {"metadata", "parallel_tool_calls", "prompt_cache_key", "request_id", "safety_identifier",
            "service_tier", "spaces_between_special_tokens", "store", "user"}},
    {kChat, {"verbosity"}},
};

// A name that a client made up, for the log and for errors: short and printable.
std::string shown(std::string_view name) {
  std::string shown(name.substr(0, 64));
  for (char& c : shown)
    if (c < ' ' || c > '~') c = '?';
  return shown;
}

// The log is a client's to fill only once per name.
void warn_unknown(const std::string& name) {
  static std::mutex mutex;
  static std::set<std::string> seen;
  const std::lock_guard lock(mutex);
  if (seen.size() < 256 && seen.insert(name).second)
    log::warning("ignoring the unknown field \"{}\" of a request (said once per name)", name);
}

}  // namespace

void refuse_field(std::string_view param, std::string_view what) {
  throw RequestError(
      ErrorCode::kInvalidArgument, fmt::format("`{}` {}.", param, what), std::string(param));
}

int64_t read_integer(const json::value& value, int64_t min, int64_t max, const std::string& param) {
  constexpr double kExact = 9007199254740992.0;  // 2^53: beyond it a double is no integer's name
  std::optional<int64_t> integer;
  if (value.is_int64()) integer = value.get_int64();
  if (value.is_double() && std::abs(value.get_double()) <= kExact &&
      value.get_double() == std::floor(value.get_double()))
    integer = static_cast<int64_t>(value.get_double());
  if (!integer || *integer < min || *integer > max)
    refuse_field(param, fmt::format("must be an integer from {} to {}", min, max));
  return *integer;
}

void check_model(const CallFields& fields, const ModelContext& model) {
  constexpr size_t kMaxNameInMessage = 128;  // a client's own words in an error stay short
  if (fields.model && *fields.model != model.name)
    throw RequestError(ErrorCode::kNotFound,
        fmt::format("There is no model \"{}\" here; this server has \"{}\".",
            fields.model->substr(0, kMaxNameInMessage), model.name),
        "model");
}

CallFields read_fields(ApiKind kind, const json::object& body, bool strict) {
  CallFields fields;
  fields.call.kind = kind;
  const Kinds mask = kKinds[static_cast<size_t>(kind)];
  for (const auto& member : body) {
    const std::string_view name = member.key();
    const json::value& value = member.value();
    const auto is_meant = [&](const auto& row) {
      if constexpr (requires { row.name; }) return row.name == name && (row.kinds & mask) != 0;
      else return std::ranges::find(row.names, name) != row.names.end() && (row.kinds & mask) != 0;
    };
    if (const auto field = std::ranges::find_if(kFields, is_meant); field != std::end(kFields)) {
      if (!value.is_null()) field->read({value, name}, fields);
    } else if (const auto refused = std::ranges::find_if(kRefused, is_meant);
               refused != std::end(kRefused)) {
      if (!value.is_null() && !refused->harmless(value))
        refuse_field(name, "is not supported by this server");
    } else if (std::ranges::none_of(kNoEffect, is_meant)) {
      if (strict) refuse_field(shown(name), "is not a field of this route");
      warn_unknown(shown(name));
    }
  }
  return fields;
}

}  // namespace millrace
