// The help texts. Pure.
#pragma once

#include <string>

#include "launch/cli/options.h"

namespace CLI {
class App;
}

namespace millrace {

// All commands, and what holds for each of them.
std::string help_overview();
// One command's flags by group: names, meaning, default, environment variable.
std::string help_command(const CommandInfo& info, const CLI::App& app);

}  // namespace millrace
