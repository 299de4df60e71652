// How mpirun is called in mode 2: its arguments. A pure function.
#pragma once

#include <string>
#include <vector>

namespace millrace {

struct MpirunConfig {
  int num_ranks = 1;
  std::string program;                  // of the workers, the same path on every host
  std::string hostfile;                 // empty: this host
  std::vector<std::string> extra_args;  // before the program; they win over ours
  bool as_root = false;                 // Open MPI refuses root unless told so
  bool quiet = true;                    // our own sentence names a lost rank
};

std::vector<std::string> mpirun_arguments(const MpirunConfig& config);

}  // namespace millrace
