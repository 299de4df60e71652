// The program: reads the command line, runs the command, turns errors into one sentence and an exit
// code (docs/exit-codes.md).
#include <fmt/format.h>
#include <sys/prctl.h>

#include <csignal>
#include <new>
#include <string>
#include <vector>

#include "comm/mpi_world.h"
#include "engine/base/log_event.h"
#include "engine/base/one_line.h"
#include "launch/cli/command_line.h"
#include "launch/cluster/worker_main.h"

namespace millrace {
namespace {

// Rank 0 of an mpirun speaks for all; the others spell-check the same words, so that all leave with
// the same code, and then work.
int run_follower(const std::vector<std::string>& args) {
  try {
    if (!parse_command_line(args, /*flags_only=*/true).text.empty()) return 0;
  } catch (const Error& error) {
    return static_cast<int>(error.exit_code());
  }
  return worker_main();
}

int run(const std::vector<std::string>& args) {
  if (!args.empty() && args[0] == "worker") return worker_main();
  if (launched_by_mpi() && launcher_rank() > 0) return run_follower(args);
  // The ranks' coordinator must not outlive their mpirun; a server drains on this signal.
  if (launched_by_mpi()) prctl(PR_SET_PDEATHSIG, SIGTERM);
  const CommandLine line = parse_command_line(args, /*flags_only=*/false);
  if (!line.text.empty()) {
    fmt::print("{}", line.text);
    return 0;
  }
  log::init(log::level_from_name(line.options.launch.log_level), "");
  if (line.options.launch.log_format == "json") log::use_json("");
  return static_cast<int>(line.command->run(line.options));
}

int report(ExitCode code, const char* message) {
  if (log::is_json()) log::error("{}", message);
  else fmt::print(stderr, "millrace: {}\n", one_line(message));
  return static_cast<int>(code);
}

// A request on the command line: its values are the user's.
ExitCode exit_code_of(ErrorCode code) {
  const bool bad_value = code == ErrorCode::kInvalidArgument ||
                         code == ErrorCode::kContextLengthExceeded || code == ErrorCode::kNotFound;
  return bad_value ? ExitCode::kUsage : ExitCode::kFailure;
}

int guarded(const std::vector<std::string>& args) {
  try {
    return run(args);
  } catch (const Error& error) {
    return report(error.exit_code(), error.what());
  } catch (const RequestError& error) {
    return report(exit_code_of(error.status().code), error.what());
  } catch (const std::bad_alloc&) {
    return report(ExitCode::kOutOfMemory, "out of memory: free some, or use more hosts");
  } catch (const std::exception& error) {
    return report(ExitCode::kFailure, error.what());
  }
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe or socket is an error of its writer
  return millrace::guarded({argv + 1, argv + argc});
}
