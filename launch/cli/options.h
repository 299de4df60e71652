// What the command line, the environment and the config file say, as one value, and the flags of
// every command. Main thread.
#pragma once

#include <array>
#include <boost/json/object.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "launch/batch/run_batch.h"
#include "launch/bench/bench.h"
#include "launch/bench/serve_bench.h"
#include "launch/cluster/launcher.h"
#include "launch/gateway/server.h"
#include "launch/sim/scheduler_bench.h"
#include "launch/sim/simulate.h"

namespace CLI {
class App;
}

namespace millrace {

struct Options;

// What a command is given, each with what stands before it, and so the flags it has. kSteps:
// degrees and limits of a step.
enum class CommandNeeds { kHost, kSteps, kModel, kEngine };

// One command: how it is called, what help says of it, its flags beside those of all commands, and
// what it does.
struct CommandInfo {
  std::string_view name;  // "bench latency"
  std::string_view summary;
  void (*declare)(CLI::App& app, Options& options);
  ExitCode (*run)(const Options& options);
  CommandNeeds needs = CommandNeeds::kEngine;
};
const std::vector<CommandInfo>& command_table();

// Spellings of other engines with one dash and several letters, and ours.
inline constexpr std::array<std::pair<std::string_view, std::string_view>, 3> kForeignNames = {{
    {"-tp", "--tensor-parallel-size"},
    {"-pp", "--pipeline-parallel-size"},
    {"-np", "--max-num-seqs"},
}};

// What `fit` plans for.
struct FitConfig {
  int gpus = 0;            // 0: this host's CPU
  int64_t gpu_memory = 0;  // bytes of each
};

struct Options {
  std::string config;  // the YAML file
  LaunchConfig launch;
  std::string load_format = "auto";
  std::string device_reason;  // why this device
  std::string pp_layers;      // "9,9,8,6"
  std::string mpirun_args;    // separated by spaces
  std::string served_model_name;
  std::string chat_template;  // a file
  std::string profile;        // a file to write

  boost::json::object sampling;  // as a client would send it: the flags that are set
  bool ignore_eos = false;
  std::optional<std::string> prompt;
  std::string prompt_file;
  bool chat = false;
  std::optional<int64_t> logprobs;
  std::string system;
  std::optional<std::string> message;
  bool json = false;

  ServerConfig server;
  bool allow_priority = false;  // of calls of the server
  bool strict_fields = false;
  BatchConfig batch;
  BenchConfig bench;
  ServeBenchConfig serve_bench;
  SchedulerBenchConfig scheduler_bench;
  SimulateConfig simulate;
  FitConfig fit;
};

// Declares the command's flags on `app`, bound to `options`, which must outlive it. Each has an
// environment variable, MILLRACE_ and the long name.
void declare_flags(CLI::App& app, const CommandInfo& command, Options& options);

// What no single flag can check; fills launch from the flags that are written as text. Throws
// Error(kUsage) naming the flag.
void finish_options(const CommandInfo& command, Options& options);

}  // namespace millrace
