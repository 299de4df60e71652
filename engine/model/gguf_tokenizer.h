// tokenizer.json made from a GGUF file's vocabulary, so that one tokenizer library serves both
// kinds of model. Pure; used while opening.
#pragma once

#include <string>

#include "engine/model/json_fields.h"

namespace millrace {

// The text of tokenizer.json, from GgufFile::fields(); empty when the file has no vocabulary.
// Throws Error(kModel) for a tokenizer.ggml.model or .pre we do not know, and for contradictory
// vocabularies. `vocab_size`: rows of the embedding, which bounds the ids.
std::string make_tokenizer_json(const JsonFields& metadata, int32_t vocab_size);

}  // namespace millrace
