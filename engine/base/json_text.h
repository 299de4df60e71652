// Text as JSON has it, without a JSON library. Any thread.
#pragma once

#include <string>
#include <string_view>

namespace millrace {

// Anybody's bytes as UTF-8: each that belongs to no well-formed character becomes U+FFFD.
std::string valid_utf8(std::string_view bytes);
// Appends `text`, which is UTF-8, as a JSON string.
void append_json_string(std::string& out, std::string_view text);

}  // namespace millrace
