#include "launch/api/fields.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <set>
#include <variant>

#include "engine/base/log.h"

namespace millrace {
namespace {

namespace json = boost::json;

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr int64_t kMinInt64 = std::numeric_limits<int64_t>::min();
constexpr int64_t kMaxInt64 = std::numeric_limits<int64_t>::max();
constexpr size_t kMaxStops = 16;
constexpr size_t kMaxStopBytes = 1024;
constexpr size_t kMaxStopTokens = 128;

[[noreturn]] void refuse(std::string_view param, const std::string& what) {
  throw RequestError(
      ErrorCode::kInvalidArgument, fmt::format("`{}` {}.", param, what), std::string(param));
}

// --- what a field can be

struct Integer {
  std::optional<int64_t> CallFields::*to;
  int64_t min, max;
};
struct Number {
  std::optional<double> CallFields::*to;
  double min, max;
};
struct Boolean {
  std::optional<bool> CallFields::*to;
};
struct Custom {
  void (*read)(const json::value& value, CallFields& fields);
};
// Asks for what this server does not do, unless `harmless` says that the value asks for nothing.
struct Refused {
  bool (*harmless)(const json::value& value);
};
// Changes nothing about the answer: bookkeeping of OpenAI's service, or hints.
struct NoEffect {};

struct Field {
  std::string_view name;
  enum Kinds { kChat = 1, kCompletion = 2, kBoth = 3 } kinds;
  std::variant<Integer, Number, Boolean, Custom, Refused, NoEffect> rule;
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

void read_model(const json::value& value, CallFields& fields) {
  if (!value.is_string()) refuse("model", "must be a string");
  fields.model = std::string(value.get_string());
}

void read_stop(const json::value& value, CallFields& fields) {
  const auto add = [&](const json::value& item) {
    if (!item.is_string()) refuse("stop", "must be a string or an array of strings");
    if (item.get_string().empty()) refuse("stop", "must not hold an empty string");
    if (item.get_string().size() > kMaxStopBytes)
      refuse("stop", fmt::format("must hold strings of at most {} bytes", kMaxStopBytes));
    fields.stop.emplace_back(item.get_string());
  };
  if (!value.is_array()) return add(value);
  if (value.get_array().size() > kMaxStops)
    refuse("stop", fmt::format("must hold at most {} strings", kMaxStops));
  for (const json::value& item : value.get_array()) add(item);
}

void read_stop_token_ids(const json::value& value, CallFields& fields) {
  if (!value.is_array() || value.get_array().size() > kMaxStopTokens)
    refuse("stop_token_ids", fmt::format("must be an array of at most {} ids", kMaxStopTokens));
  for (const json::value& item : value.get_array()) {
    const int64_t id = read_integer(item, 0, kMaxInt32, "stop_token_ids");
    fields.stop_token_ids.push_back(static_cast<int32_t>(id));
  }
}

void read_stream_options(const json::value& value, CallFields& fields) {
  if (!value.is_object()) refuse("stream_options", "must be an object");
  fields.has_stream_options = true;
  for (const auto& [key, option] : value.get_object()) {
    if (key == "include_usage" && !option.is_null()) {
      if (!option.is_bool()) refuse("stream_options.include_usage", "must be true or false");
      fields.include_usage = option.get_bool();
    } else if (key == "continuous_usage_stats" && !empty(option)) {
      refuse("stream_options.continuous_usage_stats", "is not supported by this server");
    }
  }
}

void read_messages(const json::value& value, CallFields& fields) { fields.messages = &value; }
void read_prompt(const json::value& value, CallFields& fields) { fields.prompt = &value; }

using F = CallFields;
constexpr Field kFields[] = {
    {"messages", Field::kChat, Custom{read_messages}},
    {"prompt", Field::kCompletion, Custom{read_prompt}},
    {"model", Field::kBoth, Custom{read_model}},
    // How much, and when to stop.
    {"max_tokens", Field::kBoth, Integer{&F::max_tokens, 1, kMaxInt32}},
    {"max_completion_tokens", Field::kChat, Integer{&F::max_completion_tokens, 1, kMaxInt32}},
    {"min_tokens", Field::kBoth, Integer{&F::min_tokens, 0, kMaxInt32}},
    {"stop", Field::kBoth, Custom{read_stop}},
    {"stop_token_ids", Field::kBoth, Custom{read_stop_token_ids}},
    {"ignore_eos", Field::kBoth, Boolean{&F::ignore_eos}},
    {"n", Field::kBoth, Integer{&F::n, 1, 128}},
    // How a token is drawn.
    {"temperature", Field::kBoth, Number{&F::temperature, 0, 2}},
    {"top_p", Field::kBoth, Number{&F::top_p, 0, 1}},
    {"top_k", Field::kBoth, Integer{&F::top_k, -1, kMaxInt32}},
    {"min_p", Field::kBoth, Number{&F::min_p, 0, 1}},
    {"repetition_penalty", Field::kBoth, Number{&F::repetition_penalty, 0.01, 100}},
    {"presence_penalty", Field::kBoth, Number{&F::presence_penalty, -2, 2}},
    {"frequency_penalty", Field::kBoth, Number{&F::frequency_penalty, -2, 2}},
    {"seed", Field::kBoth, Integer{&F::seed, kMinInt64, kMaxInt64}},
    // What the answer shows.
    {"stream", Field::kBoth, Boolean{&F::stream}},
    {"stream_options", Field::kBoth, Custom{read_stream_options}},
    {"logprobs", Field::kChat, Boolean{&F::chat_logprobs}},
    {"top_logprobs", Field::kChat, Integer{&F::top_logprobs, 0, 20}},
    {"logprobs", Field::kCompletion, Integer{&F::completion_logprobs, 0, 20}},
    {"echo", Field::kCompletion, Boolean{&F::echo}},
    {"skip_special_tokens", Field::kBoth, Boolean{&F::skip_special_tokens}},
    {"include_stop_str_in_output", Field::kBoth, Boolean{&F::include_stop_str_in_output}},
    {"return_token_ids", Field::kBoth, Boolean{&F::return_token_ids}},
    // How the prompt is made.
    {"add_special_tokens", Field::kBoth, Boolean{&F::add_special_tokens}},
    {"add_generation_prompt", Field::kChat, Boolean{&F::add_generation_prompt}},

    {"allowed_token_ids", Field::kBoth, Refused{empty}},
    {"audio", Field::kChat, Refused{empty}},
    {"bad_words", Field::kBoth, Refused{empty}},
    {"best_of", Field::kBoth, Refused{at_most_one}},
    {"chat_template", Field::kBoth, Refused{empty}},
    {"chat_template_kwargs", Field::kBoth, Refused{empty}},
    {"continue_final_message", Field::kChat, Refused{empty}},
    {"documents", Field::kChat, Refused{empty}},
    {"echo", Field::kChat, Refused{empty}},
    {"function_call", Field::kChat, Refused{is_none_or_auto}},
    {"functions", Field::kChat, Refused{empty}},
    {"guided_choice", Field::kBoth, Refused{empty}},
    {"guided_grammar", Field::kBoth, Refused{empty}},
    {"guided_json", Field::kBoth, Refused{empty}},
    {"guided_regex", Field::kBoth, Refused{empty}},
    {"length_penalty", Field::kBoth, Refused{is_number<1>}},
    {"logit_bias", Field::kBoth, Refused{empty}},
    {"modalities", Field::kChat, Refused{is_text_only}},
    {"prediction", Field::kChat, Refused{empty}},
    {"priority", Field::kBoth, Refused{is_number<0>}},
    {"prompt_embeds", Field::kCompletion, Refused{empty}},
    {"prompt_logprobs", Field::kBoth, Refused{empty}},
    {"reasoning_effort", Field::kChat, Refused{is_none}},
    {"response_format", Field::kBoth, Refused{is_text_format}},
    {"return_tokens_as_token_ids", Field::kBoth, Refused{empty}},
    {"structured_outputs", Field::kBoth, Refused{empty}},
    {"suffix", Field::kCompletion, Refused{empty}},
    {"tool_choice", Field::kChat, Refused{is_none_or_auto}},
    {"tools", Field::kChat, Refused{empty}},
    {"truncate_prompt_tokens", Field::kBoth, Refused{empty}},
    {"use_beam_search", Field::kBoth, Refused{empty}},
    {"web_search_options", Field::kChat, Refused{empty}},

    {"cache_salt", Field::kBoth, NoEffect{}},  // no prefix is shared between requests
    {"metadata", Field::kBoth, NoEffect{}},
    {"parallel_tool_calls", Field::kBoth, NoEffect{}},
    {"prompt_cache_key", Field::kBoth, NoEffect{}},
    {"request_id", Field::kBoth, NoEffect{}},
    {"safety_identifier", Field::kBoth, NoEffect{}},
    {"service_tier", Field::kBoth, NoEffect{}},
    {"spaces_between_special_tokens", Field::kBoth, NoEffect{}},
    {"store", Field::kBoth, NoEffect{}},
    {"user", Field::kBoth, NoEffect{}},
    {"verbosity", Field::kChat, NoEffect{}},
};

struct Reader {
  const Field& field;
  const json::value& value;
  CallFields& fields;

  void operator()(const Integer& rule) const {
    fields.*rule.to = read_integer(value, rule.min, rule.max, std::string(field.name));
  }
  void operator()(const Number& rule) const {
    const double number = value.is_number() ? value.to_number<double>() : NAN;
    if (!(number >= rule.min && number <= rule.max))
      refuse(field.name, fmt::format("must be a number from {} to {}", rule.min, rule.max));
    fields.*rule.to = number;
  }
  void operator()(const Boolean& rule) const {
    if (!value.is_bool()) refuse(field.name, "must be true or false");
    fields.*rule.to = value.get_bool();
  }
  void operator()(const Custom& rule) const { rule.read(value, fields); }
  void operator()(const Refused& rule) const {
    if (!rule.harmless(value)) refuse(field.name, "is not supported by this server");
  }
  void operator()(const NoEffect&) const {}
};

// The log is a client's to fill only once per name, and with printable characters.
void warn_unknown(std::string_view name) {
  static std::mutex mutex;
  static std::set<std::string> seen;
  std::string shown(name.substr(0, 64));
  for (char& c : shown)
    if (c < ' ' || c > '~') c = '?';
  const std::lock_guard lock(mutex);
  if (seen.size() < 256 && seen.insert(shown).second)
    log::warning("ignoring the unknown field \"{}\" of a request (said once per name)", shown);
}

}  // namespace

int64_t read_integer(const json::value& value, int64_t min, int64_t max, const std::string& param) {
  constexpr double kExact = 9007199254740992.0;  // 2^53: beyond it a double is no integer's name
  std::optional<int64_t> integer;
  if (value.is_int64()) integer = value.get_int64();
  if (value.is_double() && std::abs(value.get_double()) <= kExact &&
      value.get_double() == std::floor(value.get_double()))
    integer = static_cast<int64_t>(value.get_double());
  if (!integer || *integer < min || *integer > max)
    refuse(param, fmt::format("must be an integer from {} to {}", min, max));
  return *integer;
}

CallFields read_fields(ApiKind kind, const json::object& body) {
  const int mask = kind == ApiKind::kChat ? Field::kChat : Field::kCompletion;
  CallFields fields;
  for (const auto& member : body) {
    const auto field = std::find_if(std::begin(kFields), std::end(kFields), [&](const Field& f) {
      return f.name == std::string_view(member.key()) && (f.kinds & mask) != 0;
    });
    if (field == std::end(kFields)) warn_unknown(member.key());
    else if (!member.value().is_null())
      std::visit(Reader{*field, member.value(), fields}, field->rule);
  }
  return fields;
}

}  // namespace millrace
