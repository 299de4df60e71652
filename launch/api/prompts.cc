#include "launch/api/prompts.h"

#include <fmt/format.h>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <limits>

#include "launch/api/fields.h"

namespace millrace {
namespace {

namespace json = boost::json;

// No tokenizer we know has a longer token, so a text of more bytes than this times the context is
// too long whatever it says: refused before the tokenizer spends seconds on it.
constexpr size_t kMaxTokenBytes = 256;

[[noreturn]] void refuse(const std::string& param, const std::string& message) {
  throw RequestError(ErrorCode::kInvalidArgument, message, param);
}

std::vector<int32_t> encode(
    std::string_view text, bool add_special, const ModelContext& model, const std::string& param) {
  std::vector<int32_t> ids = encode_text(text, add_special, model, param);
  if (ids.empty()) refuse_field(param, "is empty: there is no token to go on from");
  return ids;
}

// `content` as one string: the template writes it as it stands, so parts are joined line by line.
std::string read_content(const json::value& content, const std::string& path) {
  if (content.is_string()) return std::string(content.get_string());
  if (!content.is_array()) refuse_field(path, "must be a string or an array");
  std::string text;
  for (size_t i = 0; i < content.get_array().size(); ++i) {
    const json::object* part = content.get_array()[i].if_object();
    const std::string at = fmt::format("{}[{}]", path, i);
    const json::value* type = part != nullptr ? part->if_contains("type") : nullptr;
    if (type == nullptr || !type->is_string()) refuse_field(at, "must be an object with a `type`");
    if (type->get_string() != "text")
      refuse_field(at, "is not text: this server takes parts of type text only");
    const json::value* piece = part->if_contains("text");
    if (piece == nullptr || !piece->is_string()) refuse_field(at + ".text", "must be a string");
    if (i > 0) text += '\n';
    text += std::string_view(piece->get_string());
  }
  return text;
}

std::string read_role(const json::object& message, const std::string& path) {
  const json::value* role = message.if_contains("role");
  if (role != nullptr && role->is_string()) {
    const std::string_view name = role->get_string();
    if (name == "system" || name == "user" || name == "assistant" || name == "tool")
      return std::string(name);
    // OpenAI's newer name of the system role; templates of open models know the older one.
    if (name == "developer") return "system";
  }
  refuse_field(path + ".role", "must be system, developer, user, assistant or tool");
}

json::object read_message(const json::value& value, const std::string& path) {
  const json::object* message = value.if_object();
  if (message == nullptr) refuse_field(path, "must be an object");
  json::object clean;
  const std::string role = read_role(*message, path);
  clean["role"] = role;
  for (const char* unsupported : {"tool_calls", "function_call", "audio"}) {
    const json::value* field = message->if_contains(unsupported);
    if (field != nullptr && !field->is_null() && !(field->is_array() && field->get_array().empty()))
      refuse_field(path + "." + unsupported, "is not supported by this server");
  }
  const json::value* content = message->if_contains("content");
  const bool absent = content == nullptr || content->is_null();
  if (absent && role != "assistant") refuse_field(path + ".content", "is missing");
  clean["content"] = absent ? std::string() : read_content(*content, path + ".content");
  if (const json::value* name = message->if_contains("name"); name != nullptr && !name->is_null()) {
    if (!name->is_string()) refuse_field(path + ".name", "must be a string");
    clean["name"] = name->get_string();
  }
  return clean;
}

std::vector<int32_t> read_ids(const json::array& list, const ModelContext& model) {
  if (list.size() >= static_cast<size_t>(model.max_model_len))
    refuse_length(model, list.size(), 0, "prompt");
  std::vector<int32_t> ids;
  ids.reserve(list.size());
  for (const json::value& id : list)
    ids.push_back(static_cast<int32_t>(read_integer(id, 0, model.vocab_size - 1, "prompt")));
  if (ids.empty()) refuse_field("prompt", "is empty: there is no token to go on from");
  return ids;
}

}  // namespace

std::vector<int32_t> encode_text(
    std::string_view text, bool add_special, const ModelContext& model, const std::string& param) {
  const auto context = static_cast<size_t>(model.max_model_len);
  if (text.size() / kMaxTokenBytes > context)
    throw RequestError(ErrorCode::kContextLengthExceeded,
        fmt::format(
            "This model's maximum context length is {} tokens: a prompt of {} bytes is longer.",
            context, text.size()),
        param);
  try {
    return model.tokenizer->encode(text, add_special);
  } catch (const RequestError& error) {
    refuse(param, error.what());
  }
}

void refuse_length(
    const ModelContext& model, size_t prompt_tokens, int64_t max_tokens, const std::string& param) {
  std::string message =
      fmt::format("This model's maximum context length is {} tokens, but the prompt has {}",
          model.max_model_len, prompt_tokens);
  if (max_tokens > 0) message += fmt::format(" and up to {} more were asked for", max_tokens);
  message += ". Shorten the prompt";
  message += max_tokens > 0 ? " or ask for fewer tokens." : ".";
  throw RequestError(ErrorCode::kContextLengthExceeded, message, param);
}

Prompt chat_prompt(const json::value& messages, bool add_special, bool add_generation_prompt,
    const ModelContext& model) {
  if (!messages.is_array() || messages.get_array().empty())
    refuse_field("messages", "must be an array with at least one message");
  if (messages.get_array().size() > kMaxMessages)
    refuse_field("messages", fmt::format("must hold at most {} messages", kMaxMessages));
  if (model.chat_template == nullptr)
    refuse("messages", "This model has no chat template: use /v1/completions.");
  json::array clean;
  for (const json::value& message : messages.get_array())
    clean.push_back(read_message(message, fmt::format("messages[{}]", clean.size())));
  const std::string text =
      model.chat_template->render(json::serialize(clean), "{}", add_generation_prompt);
  return {encode(text, add_special, model, "messages"), ""};
}

std::vector<Prompt> completion_prompts(
    const json::value& prompt, bool add_special, bool with_text, const ModelContext& model) {
  std::vector<Prompt> prompts;
  const auto add_text = [&](std::string_view text) {
    prompts.push_back({encode(text, add_special, model, "prompt"),
        with_text ? std::string(text) : std::string()});
  };
  const auto add_ids = [&](const json::array& list) {
    Prompt made{read_ids(list, model), ""};
    if (with_text) made.text = model.tokenizer->decode(made.ids, /*skip_special=*/false);
    prompts.push_back(std::move(made));
  };
  if (prompt.is_string()) {
    add_text(prompt.get_string());
    return prompts;
  }
  const json::array* list = prompt.if_array();
  if (list != nullptr && !list->empty() && list->front().is_number()) {
    add_ids(*list);
    return prompts;
  }
  if (list == nullptr || list->empty())
    refuse_field("prompt", "must be a string, a list of strings, a list of ids or a list of those");
  if (list->size() > kMaxPrompts)
    refuse_field("prompt", fmt::format("must hold at most {} prompts", kMaxPrompts));
  for (const json::value& item : *list) {
    if (item.kind() != list->front().kind() || (!item.is_string() && !item.is_array()))
      refuse_field("prompt", "must hold only strings or only lists of ids");
    item.is_string() ? add_text(item.get_string()) : add_ids(item.get_array());
  }
  return prompts;
}

}  // namespace millrace
