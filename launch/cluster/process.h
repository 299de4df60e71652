// A child process with its own standard input, ended and reaped with its owner. Its standard output
// is our standard error: standard output belongs to what the user asked for. Main thread only: the
// kernel sends the parent-death signal when the thread that started the child ends.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <csignal>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/bytes.h"

namespace millrace {

struct ProcessConfig {
  std::vector<std::string> argv;  // argv[0] is looked up in PATH unless it has a slash
  Bytes input;                    // written to its standard input, which is then closed; <= 4 KiB
  bool own_group = false;         // a terminal's Ctrl-C does not reach it
  int death_signal = SIGKILL;     // sent by the kernel when we die
};

class Process {
 public:
  // Throws Error(kFailure) naming the program and the system's reason.
  explicit Process(const ProcessConfig& config);
  // Ends it at once if it still runs.
  ~Process();
  Process(const Process&) = delete;

  pid_t pid() const { return pid_; }
  // The wait status once it has ended; does not block.
  std::optional<int> poll();
  // The same, waiting up to `limit`.
  std::optional<int> wait_for(std::chrono::milliseconds limit);
  void send_signal(int signal);

 private:
  pid_t pid_ = -1;
  std::optional<int> status_;
};

// "exited with code 3", "was killed by signal 9 (Killed)".
std::string describe_exit(int wait_status);

}  // namespace millrace
