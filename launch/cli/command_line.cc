#include "launch/cli/command_line.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <numeric>
#include <utility>

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "launch/cli/help.h"

namespace millrace {

namespace {

constexpr uint64_t kMaxConfigBytes = 1 << 20;
// Their values are anybody's text.
constexpr std::array<std::string_view, 7> kTextFlags = {
    "--prompt", "-p", "--stop", "--message", "-m", "--system", "--mpirun-args"};

[[noreturn]] void usage_error(const std::string& sentence) {
  throw Error(ExitCode::kUsage, sentence);
}

std::string did_you_mean(std::string_view word, const std::vector<std::string>& candidates) {
  const std::string guess = nearest(word, candidates);
  return guess.empty() ? "" : fmt::format("did you mean {}? ", guess);
}

std::unique_ptr<CLI::App> make_app(const CommandInfo& info, Options& options) {
  auto app = std::make_unique<CLI::App>(
      std::string(info.summary) + ".", fmt::format("millrace {}", info.name));
  app->set_help_flag();
  app->allow_extras();
  declare_flags(*app, info, options);
  app->set_help_flag("-h,--help", "Print this text")->group("General");
  return app;
}

std::vector<std::string> long_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    const auto& lnames = option->get_lnames();
    names.insert(names.end(), lnames.begin(), lnames.end());
  }
  return names;
}

bool known_to_any_command(const std::string& key) {
  for (const CommandInfo& info : command_table()) {
    Options options;
    const auto names = long_names(*make_app(info, options));
    if (std::find(names.begin(), names.end(), key) != names.end()) return true;
  }
  return false;
}

// One sentence for what CLI11 found; its own may have several lines.
[[noreturn]] void refuse(
    const CLI::ParseError& error, const CLI::App& app, const std::string& where) {
  std::string what = error.what();
  std::replace(what.begin(), what.end(), '\n', ' ');
  usage_error(fmt::format("{}{}; `{} --help` lists the flags", where, what, app.get_name()));
}

void refuse_extras(const CommandInfo& info, const CLI::App& app) {
  const auto extras = app.remaining();
  if (extras.empty()) return;
  const auto flag = std::find_if(
      extras.begin(), extras.end(), [](const std::string& word) { return word.starts_with("-"); });
  if (flag == extras.end()) {
    usage_error(fmt::format("unexpected argument '{}': {} takes {}", extras[0], app.get_name(),
        info.needs >= CommandNeeds::kModel ? "one MODEL and flags" : "flags only"));
  }
  const std::string name = flag->substr(0, flag->find('='));
  std::vector<std::string> candidates = long_names(app);
  for (std::string& candidate : candidates) candidate.insert(0, "--");
  usage_error(fmt::format("unknown flag {}: {}`{} --help` lists the flags", name,
      did_you_mean(name, candidates), app.get_name()));
}

// The values of a YAML file by key, in the file's spelling with '_' read as '-'; a list gives
// several.
using ConfigValues = std::map<std::string, std::vector<std::string>>;

[[noreturn]] void refuse(const std::string& path, const YAML::Mark& mark, std::string_view what) {
  usage_error(fmt::format("{} line {}: {}", path, mark.line + 1, what));
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

// Throws Error(kUsage) naming `path`, the line and the key: what is not a map of scalars and lists
// of scalars, or a key that stands twice.
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

void apply_config(CLI::App& app, const std::string& path) {
  const ConfigValues values =
      parse_config(read_file(path, kMaxConfigBytes, ExitCode::kUsage), path);
  for (const auto& [key, results] : values) {
    CLI::Option* option =
        key == "help" || key == "config" ? nullptr : app.get_option_no_throw("--" + key);
    if (option == nullptr) {
      // One file may serve several commands.
      if (key != "help" && key != "config" && known_to_any_command(key)) continue;
      usage_error(fmt::format("unknown key {} in {}: {}keys are the long names of flags", key, path,
          did_you_mean(key, long_names(app))));
    }
    if (option->count() > 0) continue;  // the command line or the environment said it
    const bool takes_many = option->get_items_expected_max() > 1;
    try {
      option->add_result(
          takes_many ? results : std::vector{fmt::format("{}", fmt::join(results, ","))});
      option->run_callback();
    } catch (const CLI::ParseError& error) {
      refuse(error, app, path + ": ");
    }
  }
}

const CommandInfo& find_command(const std::vector<std::string>& args, size_t* num_words) {
  const std::string first = args[0];
  const std::string both = args.size() > 1 ? first + " " + args[1] : first;
  std::vector<std::string> names;
  for (const CommandInfo& info : command_table()) {
    if (info.name == first || info.name == both) {
      *num_words = info.name == both && info.name != first ? 2 : 1;
      return info;
    }
    names.emplace_back(info.name);
  }
  if (first == "bench")
    usage_error(
        "bench needs a kind: `millrace bench latency`, `throughput`, `kernels`, `comm`, "
        "`interference`, `serve` or "
        "`scheduler`");
  usage_error(fmt::format("unknown command '{}': {}`millrace --help` lists the commands", first,
      did_you_mean(first, names)));
}

}  // namespace

CommandLine parse_command_line(const std::vector<std::string>& args, bool flags_only) {
  CommandLine line;
  if (args.empty()) usage_error("no command given: `millrace --help` lists the commands");
  if (args[0] == "--help" || args[0] == "-h" || args[0] == "help") {
    line.text = help_overview();
    return line;
  }
  if (args[0] == "--version" || args[0] == "version") {
    line.text = "millrace " MILLRACE_VERSION "\n";
    return line;
  }
  if (args[0] == "bench" && args.size() > 1 && (args[1] == "--help" || args[1] == "-h")) {
    line.text = help_overview();
    return line;
  }
  size_t num_words = 0;
  const CommandInfo& info = find_command(args, &num_words);
  line.command = &info;
  const auto app = make_app(info, line.options);
  auto words = normalize({args.begin() + static_cast<std::ptrdiff_t>(num_words), args.end()});
  std::reverse(words.begin(), words.end());  // as CLI11 takes them
  try {
    app->parse(std::move(words));
  } catch (const CLI::CallForHelp&) {
    line.text = help_command(info, *app);
    return line;
  } catch (const CLI::ParseError& error) {
    refuse(error, *app, "");
  }
  refuse_extras(info, *app);
  if (flags_only) return line;
  if (!line.options.config.empty()) apply_config(*app, line.options.config);
  finish_options(info, line.options);
  return line;
}

std::vector<std::string> normalize(const std::vector<std::string>& args) {
  std::vector<std::string> result;
  for (const std::string& arg : args) {
    if (!result.empty() &&
        std::find(kTextFlags.begin(), kTextFlags.end(), result.back()) != kTextFlags.end()) {
      result.push_back(arg);
      continue;
    }
    const size_t name_end = std::min(arg.find('='), arg.size());
    std::string name = arg.substr(0, name_end);
    if (name.starts_with("--")) std::replace(name.begin(), name.end(), '_', '-');
    for (const auto& [foreign, ours] : kForeignNames) {
      if (name == foreign) name = ours;
    }
    result.push_back(name + arg.substr(name_end));
  }
  return result;
}

std::string nearest(std::string_view word, const std::vector<std::string>& candidates) {
  std::string best;
  size_t best_distance = std::max<size_t>(2, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    // Levenshtein's distance, one row of the table at a time.
    std::vector<size_t> row(candidate.size() + 1);
    std::iota(row.begin(), row.end(), size_t{0});
    for (size_t i = 0; i < word.size(); ++i) {
      size_t diagonal = std::exchange(row[0], i + 1);
      for (size_t j = 0; j < candidate.size(); ++j) {
        const size_t replaced = diagonal + (word[i] == candidate[j] ? 0 : 1);
        diagonal = row[j + 1];
        row[j + 1] = std::min({replaced, row[j] + 1, diagonal + 1});
      }
    }
    if (row.back() < best_distance) {
      best_distance = row.back();
      best = candidate;
    }
  }
  return best;
}

}  // namespace millrace
