// The rotary embedding of a config.json, in the spellings of transformers 4 and 5.
#pragma once

#include "engine/model/families.h"
#include "engine/model/json_fields.h"

namespace millrace {

// Fills config.rope and config.local_rope, whose shape has been read. Throws Error(kModel).
void read_ropes(const JsonFields& fields, const Family& family, ModelConfig& config);

}  // namespace millrace
