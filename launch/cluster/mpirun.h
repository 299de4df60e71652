// How mpirun is called in mode 2: its arguments and environment. Pure functions.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace millrace {

struct MpirunConfig {
  int num_ranks = 1;
  std::string program;                  // of the workers, the same path on every host
  std::string hostfile;                 // empty: this host
  std::vector<std::string> extra_args;  // before the program; they win over ours
  bool quiet = true;                    // our own sentence names a lost rank
};

std::vector<std::string> mpirun_arguments(const MpirunConfig& config);

// Open MPI refuses root unless both of its variables say so.
std::vector<std::pair<std::string, std::string>> mpirun_environment(bool root);

}  // namespace millrace
