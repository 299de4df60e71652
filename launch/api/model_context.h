// What the ways in share about the served model: names, tokenizer, template, limits, and what its
// calls may ask. Const.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/text/text.h"

namespace millrace {

struct ModelContext {
  std::string name;  // --served-model-name, else the checkpoint's
  std::shared_ptr<const Tokenizer> tokenizer;
  std::shared_ptr<const ChatTemplate> chat_template;  // null: the model has none
  int32_t vocab_size = 0;                             // width of the logits
  int32_t max_model_len = 0;                          // prompt + output
  std::vector<int32_t> eos_token_ids;
  int64_t created = 0;  // unix seconds, for /v1/models
  // False: every call has the same priority, so that no client can put itself before the others.
  bool allow_priority = false;
  bool strict_fields = false;  // refuse unknown fields
};

}  // namespace millrace
