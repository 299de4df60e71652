#include "launch/cluster/process.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <thread>

#include "engine/base/check.h"
#include "engine/base/status.h"

namespace millrace {

namespace {

constexpr auto kPollInterval = std::chrono::milliseconds(20);

// Both ends close on exec; closed with the object.
struct Pipe {
  Pipe() {
    if (pipe2(fds, O_CLOEXEC) != 0) {
      throw Error(ExitCode::kFailure, "cannot make a pipe: {}", std::strerror(errno));
    }
  }
  ~Pipe() {
    close_end(0);
    close_end(1);
  }
  Pipe(const Pipe&) = delete;
  void close_end(int end) {
    if (fds[end] >= 0) close(fds[end]);
    fds[end] = -1;
  }
  int fds[2] = {-1, -1};
};

// Between fork and exec of a process with threads: system calls only, no memory, no locks.
[[noreturn]] void become(
    const ProcessConfig& config, char* const* argv, int input, int errors, pid_t parent) {
  prctl(PR_SET_PDEATHSIG, config.death_signal);
  if (getppid() != parent) _exit(1);  // it died before the line above
  if (config.own_group) setpgid(0, 0);
  signal(SIGPIPE, SIG_DFL);
  dup2(input, STDIN_FILENO);
  dup2(STDERR_FILENO, STDOUT_FILENO);
  // Listening sockets and connections must not live on in the child. (Sets close-on-exec: `errors`
  // is still needed.)
  if (syscall(SYS_close_range, 3u, UINT_MAX, CLOSE_RANGE_CLOEXEC) != 0) {
    for (int fd = 3; fd < 4096; ++fd) fcntl(fd, F_SETFD, FD_CLOEXEC);
  }
  execvp(argv[0], argv);
  const int error = errno;
  [[maybe_unused]] const auto written = write(errors, &error, sizeof(error));
  _exit(127);
}

}  // namespace

Process::Process(const ProcessConfig& config) {
  CHECK(!config.argv.empty() && config.input.size() <= PIPE_BUF, "{} bytes of input",
      config.input.size());
  auto arguments = config.argv;
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  Pipe input;
  Pipe errors;
  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ < 0) {
    throw Error(ExitCode::kFailure, "cannot start {}: {}", argv[0], std::strerror(errno));
  }
  if (pid_ == 0) become(config, argv.data(), input.fds[0], errors.fds[1], parent);
  input.close_end(0);
  errors.close_end(1);
  int error = 0;
  ssize_t got = 0;
  do {
    got = read(errors.fds[0], &error, sizeof(error));
  } while (got < 0 && errno == EINTR);
  if (got == sizeof(error)) {
    waitpid(pid_, nullptr, 0);
    throw Error(ExitCode::kFailure, "cannot start {}: {}", argv[0], std::strerror(error));
  }
  // Fits the pipe's buffer, so it cannot block; a child that is gone already is seen by poll().
  [[maybe_unused]] const auto written =
      write(input.fds[1], config.input.data(), config.input.size());
}

Process::~Process() {
  if (poll()) return;
  send_signal(SIGKILL);
  waitpid(pid_, nullptr, 0);
}

std::optional<int> Process::poll() {
  int status = 0;
  if (!status_ && waitpid(pid_, &status, WNOHANG) == pid_) status_ = status;
  return status_;
}

std::optional<int> Process::wait_for(std::chrono::milliseconds limit) {
  const auto until = std::chrono::steady_clock::now() + limit;
  while (!poll() && std::chrono::steady_clock::now() < until) {
    std::this_thread::sleep_for(kPollInterval);
  }
  return status_;
}

void Process::send_signal(int signal) {
  if (!poll()) kill(pid_, signal);
}

std::string describe_exit(int wait_status) {
  if (WIFSIGNALED(wait_status)) {
    const int signal = WTERMSIG(wait_status);
    return fmt::format("was killed by signal {} ({})", signal, strsignal(signal));
  }
  return fmt::format("exited with code {}", WEXITSTATUS(wait_status));
}

}  // namespace millrace
