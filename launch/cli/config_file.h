// A YAML file of flags: long names and their values. Pure, but for reading the file.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace millrace {

// Values by key, in the file's spelling with '_' read as '-'; a list gives several.
using ConfigValues = std::map<std::string, std::vector<std::string>>;

// Throws Error(kUsage) naming `path`, the line and the key: what is not a map of scalars and lists
// of scalars, or a key that stands twice.
ConfigValues parse_config(std::string_view yaml, const std::string& path);

}  // namespace millrace
