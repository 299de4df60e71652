#include "launch/cli/help.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <sstream>

namespace millrace {

namespace {

constexpr size_t kWidth = 88;
constexpr size_t kIndent = 6;

std::string wrapped(const std::string& text) {
  std::string result;
  std::string line;
  std::istringstream in(text);
  const auto end_line = [&] {
    result += std::string(kIndent, ' ') + line + "\n";
    line.clear();
  };
  for (std::string word; in >> word;) {
    if (!line.empty() && kIndent + line.size() + 1 + word.size() > kWidth) end_line();
    line += (line.empty() ? "" : " ") + word;
  }
  end_line();
  return result;
}

std::string placeholder(const CLI::Option& option) {
  if (option.get_items_expected_max() == 0) return "";  // a switch
  const std::string type = option.get_type_name();
  if (type.starts_with("INT") || type.starts_with("UINT")) return " N";
  return type.starts_with("FLOAT") ? " X" : " TEXT";
}

std::string entry(const CLI::Option& option) {
  std::string names;
  const auto add = [&names](
                       const std::string& name) { names += (names.empty() ? "" : ", ") + name; };
  for (const std::string& name : option.get_snames()) add("-" + name);
  for (const auto& [foreign, name] : kForeignNames) {
    if (option.check_name(std::string(name))) add(std::string(foreign));
  }
  for (const std::string& name : option.get_lnames()) add("--" + name);
  std::string text = option.get_description() + ".";
  if (const std::string& value = option.get_default_str(); !value.empty()) {
    text += fmt::format(" Default: {}.", value);
  }
  if (const std::string variable = option.get_envname(); !variable.empty()) {
    text += fmt::format(" [{}]", variable);
  }
  return fmt::format("  {}{}\n{}", names, placeholder(option), wrapped(text));
}

}  // namespace

std::string help_overview() {
  std::string text = "millrace " MILLRACE_VERSION
                     ": serves language models on one machine or many ranks\n\n"
                     "Usage: millrace COMMAND MODEL [flags]\n\nCommands:\n";
  for (const CommandInfo& info : command_table()) {
    text += fmt::format("  {:18} {}\n", info.name, info.summary);
  }
  return text +
         "\n`millrace COMMAND --help` lists the flags. MODEL is a folder or a .gguf file.\n"
         "With -tp N -pp M millrace starts N x M ranks by itself; under mpirun it uses those.\n"
         "Text that was asked for goes to standard output, everything else to standard error.\n"
         "Exit codes: 0 ok, 1 failure, 2 usage, 3 model, 4 layout, 5 address, 6 worker lost,\n"
         "7 out of memory, 8 some batch rows failed, 9 input or output file, 70 a bug.\n";
}

std::string help_command(const CommandInfo& info, const CLI::App& app) {
  std::string text = fmt::format("{}.\n\nUsage: millrace {}{} [flags]\n\n", info.summary, info.name,
                         info.needs >= CommandNeeds::kModel ? " MODEL" : "") +
                     "A flag may also stand in its [VARIABLE] or in the --config file; the command "
                     "line is\nstronger than the environment, and the environment than the file.\n";
  for (const std::string& group : app.get_groups()) {
    std::string entries;
    for (const CLI::Option* option : app.get_options()) {
      if (option->get_group() == group) entries += entry(*option);
    }
    text += fmt::format("\n{}\n{}", group, entries);
  }
  return text;
}

}  // namespace millrace
