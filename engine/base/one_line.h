// What is said to a person, as one line: a message may quote a file, and what a file says must not
// look like lines of ours. Pure.
#pragma once

#include <string>
#include <string_view>

namespace millrace {

// At most 2,000 bytes of `message`, with spaces for control characters.
inline std::string one_line(std::string_view message) {
  constexpr size_t kMaxBytes = 2000;
  std::string line(message.substr(0, kMaxBytes));
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  return message.size() > kMaxBytes ? line + "..." : line;
}

}  // namespace millrace
