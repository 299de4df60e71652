// /tokenize and /detokenize: text and ids without the engine.
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value_from.hpp>

#include "launch/api/fields.h"
#include "launch/api/openai.h"
#include "launch/api/output.h"
#include "launch/api/prompts.h"
#include "launch/api/strict_json.h"

namespace millrace {
namespace {

namespace json = boost::json;

json::object tokenize(const CallFields& fields, const ModelContext& model) {
  if ((fields.messages != nullptr) == (fields.prompt != nullptr))
    refuse_field("prompt", "or `messages` must be given, one of the two");
  std::vector<int32_t> ids;
  if (fields.messages != nullptr) {
    ids = chat_prompt(*fields.messages, fields.add_special_tokens.value_or(false),
        fields.add_generation_prompt, model)
              .ids;
  } else {
    if (!fields.prompt->is_string()) refuse_field("prompt", "must be a string");
    ids = encode_text(
        fields.prompt->get_string(), fields.add_special_tokens.value_or(true), model, "prompt");
  }
  json::object answer{{"count", ids.size()}, {"max_model_len", model.max_model_len},
      {"tokens", json::value_from(ids)}, {"token_strs", nullptr}};
  if (fields.return_token_strs) {
    json::array texts;
    for (const int32_t id : ids) texts.emplace_back(token_text(*model.tokenizer, id));
    answer["token_strs"] = std::move(texts);
  }
  return answer;
}

json::object detokenize(const CallFields& fields, const ModelContext& model) {
  const json::array* tokens = fields.tokens != nullptr ? fields.tokens->if_array() : nullptr;
  if (tokens == nullptr) refuse_field("tokens", "must be an array of ids");
  std::vector<int32_t> ids;
  for (const json::value& id : *tokens)
    ids.push_back(
        static_cast<int32_t>(read_integer(id, 0, model.tokenizer->vocab_size() - 1, "tokens")));
  return {{"prompt", model.tokenizer->decode(ids, /*skip_special=*/false)}};
}

}  // namespace

std::string text_answer(ApiKind kind, std::string_view body, const ModelContext& model) {
  const json::object object = parse_json_object(body);
  const CallFields fields = read_fields(kind, object, model.strict_fields);
  check_model(fields, model);
  return json::serialize(
      kind == ApiKind::kTokenize ? tokenize(fields, model) : detokenize(fields, model));
}

}  // namespace millrace
