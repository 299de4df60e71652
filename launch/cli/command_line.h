// From words to Options: which command, its flags, the environment and the config file, in this
// order of power. Main thread.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "launch/cli/options.h"

namespace millrace {

struct CommandLine {
  const CommandInfo* command = nullptr;
  Options options;
  std::string text;  // help or version, when that was asked; the rest is not set then
};

// `args`: without the program's name. Throws Error(kUsage) in one sentence. `flags_only`: the
// config file is not read and nothing but the spelling is checked (ranks that obey another's
// options).
CommandLine parse_command_line(const std::vector<std::string>& args, bool flags_only);

// Other engines' spellings in ours: -tp, -pp and -np in their long form, '_' in a long name as '-'.
std::vector<std::string> normalize(const std::vector<std::string>& args);

// The candidate that `word` was probably meant to be; empty when none is near.
std::string nearest(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace millrace
