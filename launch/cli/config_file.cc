#include "launch/cli/config_file.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>

#include "engine/base/status.h"

namespace millrace {

namespace {

[[noreturn]] void refuse(const std::string& path, const YAML::Mark& mark, std::string_view what) {
  throw Error(ExitCode::kUsage, fmt::format("{} line {}: {}", path, mark.line + 1, what));
}

std::vector<std::string> scalars(
    const YAML::Node& node, const std::string& path, const std::string& key) {
  if (node.IsScalar()) return {node.Scalar()};
  std::vector<std::string> values;
  if (node.IsSequence()) {
    for (const YAML::Node& each : node) {
      if (!each.IsScalar()) refuse(path, each.Mark(), fmt::format("{} holds no plain value", key));
      values.push_back(each.Scalar());
    }
  }
  if (values.empty()) {
    refuse(path, node.Mark(), fmt::format("{} needs a value or a list of values", key));
  }
  return values;
}

}  // namespace

ConfigValues parse_config(std::string_view yaml, const std::string& path) {
  ConfigValues values;
  try {
    const YAML::Node root = YAML::Load(std::string(yaml));
    if (root.IsNull()) return values;
    if (!root.IsMap()) refuse(path, root.Mark(), "write flags as `long-name: value` lines");
    for (const auto& entry : root) {
      std::string key = entry.first.Scalar();
      std::replace(key.begin(), key.end(), '_', '-');
      if (!values.emplace(key, scalars(entry.second, path, key)).second) {
        refuse(path, entry.first.Mark(), fmt::format("{} stands there twice", key));
      }
    }
  } catch (const YAML::Exception& error) {
    refuse(path, error.mark, error.msg);
  }
  return values;
}

}  // namespace millrace
