#include "launch/cluster/mpirun.h"

#include <fmt/format.h>

namespace millrace {

std::vector<std::string> mpirun_arguments(const MpirunConfig& config) {
  std::vector<std::string> args = {"mpirun", "-np", fmt::format("{}", config.num_ranks)};
  if (config.quiet) args.emplace_back("--quiet");
  if (config.as_root) args.emplace_back("--allow-run-as-root");
  // A rank has threads of its own: bound to one core they would stand in each other's way.
  args.insert(args.end(), {"--bind-to", "none"});
  if (config.hostfile.empty()) {
    // Without hosts to reach Open MPI needs no ssh, and must not fail where there is none. Ranks
    // may outnumber cores: the workers then wait without spinning (worker_main.cc).
    args.insert(args.end(), {"--mca", "plm", "isolated", "--oversubscribe"});
  } else {
    // Host by host, so that the ranks of a stage stay together.
    args.insert(args.end(), {"--hostfile", config.hostfile, "--map-by", "slot"});
  }
  args.insert(args.end(), config.extra_args.begin(), config.extra_args.end());
  args.insert(args.end(), {config.program, "worker"});
  return args;
}

}  // namespace millrace
