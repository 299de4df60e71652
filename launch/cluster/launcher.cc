#include "launch/cluster/launcher.h"

#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <climits>
#include <cmath>

#include "comm/mpi_world.h"
#include "engine/base/check.h"
#include "engine/base/file.h"
#include "engine/base/log.h"
#include "engine/worker/worker.h"
#include "launch/cluster/null_worker.h"
#include "launch/cluster/ticket.h"

namespace millrace {

namespace {

constexpr int kInProcessRank = 0;
// Of the workers to leave by themselves once their links have ended, then of mpirun to end them:
// it gives ranks a second between its signals.
constexpr auto kLeaveTime = std::chrono::seconds(5);
constexpr auto kTermTime = std::chrono::seconds(3);

std::string own_path() {
  char path[PATH_MAX];
  const ssize_t size = readlink("/proc/self/exe", path, sizeof(path));
  if (size <= 0) throw Error(ExitCode::kFailure, "cannot read /proc/self/exe: is /proc mounted?");
  return std::string(path, static_cast<size_t>(size));
}

bool all_ranks_here(const LaunchConfig& config, LaunchMode mode) {
  if (mode == LaunchMode::kMpirun) return config.hostfile.empty();
  const char* local_size = getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
  return local_size != nullptr && std::to_string(launcher_size()) == local_size;
}

// A worker that cannot go on leaves with a code of our table, and mpirun with the worker's; a
// killed one makes it 128 and the signal's number.
ExitCode exit_code_of(int wait_status) {
  if (!WIFEXITED(wait_status) || WEXITSTATUS(wait_status) > 128) return ExitCode::kWorkerLost;
  const int code = WEXITSTATUS(wait_status);
  const bool of_our_table =
      code > static_cast<int>(ExitCode::kFailure) && code <= static_cast<int>(ExitCode::kInput);
  return of_our_table ? static_cast<ExitCode>(code) : ExitCode::kFailure;
}

}  // namespace

LaunchMode choose_mode(const EngineConfig& engine, int world_size) {
  const int num_ranks = engine.tp * engine.pp;
  if (world_size < 0) return num_ranks == 1 ? LaunchMode::kInProcess : LaunchMode::kMpirun;
  if (world_size == num_ranks) return LaunchMode::kUnderMpi;
  throw Error(ExitCode::kLayout,
      "mpirun started {} rank{}, but -tp {} times -pp {} needs {}: choose -tp "
      "and -pp whose product is {} (for example -tp {}), or run mpirun -np {}",
      world_size, world_size == 1 ? "" : "s", engine.tp, engine.pp, num_ranks, world_size,
      world_size, num_ranks);
}

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

void Launcher::start_thread(const LaunchConfig& config, boost::asio::io_context& io,
    LinkEvents events, const LinkListener::OnLink& on_link) {
  InProcessLink ends = make_in_process_link(io, kInProcessRank, std::move(events));
  link_ = std::move(ends.coordinator_link);
  on_link(kInProcessRank, std::move(ends.worker_link));
  worker_ = std::thread([this, null_step_ms = config.null_step_ms] {
    if (null_step_ms)
      return run_null_worker(*link_, std::chrono::microseconds(std::lround(*null_step_ms * 1e3)));
    run_worker({.rank = kInProcessRank, .local_size = 1, .link = link_.get()});
  });
}

void Launcher::start_job(const LaunchConfig& config, LaunchMode mode, boost::asio::io_context& io,
    LinkEvents events, LinkListener::OnLink on_link) {
  LaunchTicket ticket;
  ticket.key = make_session_key();
  ticket.addresses = {config.control_address};
  if (config.control_address.empty()) {
    ticket.addresses = {local_addresses(all_ranks_here(config, mode)).front()};
  }
  ticket.tp = config.engine.tp;
  ticket.pp = config.engine.pp;
  ticket.timeout_s = config.engine.timeout_s;
  ticket.log_level = config.log_level;
  ticket.log_json = config.log_format == "json";
  const int num_ranks = ticket.tp * ticket.pp;
  listener_ = std::make_unique<LinkListener>(
      io, ticket.addresses.front(), ticket.key, num_ranks, std::move(events), std::move(on_link));
  ticket.port = listener_->port();
  log::debug(
      "waiting for {} ranks at {} port {}", num_ranks, ticket.addresses.front(), ticket.port);
  process_ = std::make_unique<Process>(process_config(config, mode, encode(ticket)));
}

ProcessConfig Launcher::process_config(const LaunchConfig& config, LaunchMode mode, Bytes input) {
  ProcessConfig result;
  result.input = std::move(input);
  if (mode == LaunchMode::kUnderMpi) {
    name_ = "the worker of rank 0";
    own_child_ = true;
    result.argv = {own_path(), "worker"};
    return result;
  }
  name_ = "mpirun";
  const int num_ranks = config.engine.tp * config.engine.pp;
  // On one host nothing is left to say beside our own sentence; with several it may be ssh's.
  quiet_ = config.hostfile.empty() && !log::enabled(log::Level::kDebug);
  result.argv = mpirun_arguments({num_ranks, own_path(), config.hostfile, config.mpirun_args,
      /*as_root=*/geteuid() == 0, quiet_});
  result.own_group = true;
  result.death_signal = SIGTERM;  // mpirun then ends its ranks and tidies up
  return result;
}

Launcher::Launcher(const LaunchConfig& config, LaunchMode mode, boost::asio::io_context& io,
    LinkEvents events, LinkListener::OnLink on_link) {
  if (!config.hostfile.empty()) File(config.hostfile, ExitCode::kInput);
  if (mode == LaunchMode::kInProcess) {
    start_thread(config, io, std::move(events), on_link);
  } else {
    start_job(config, mode, io, std::move(events), std::move(on_link));
  }
}

void Launcher::stop() {
  if (link_ != nullptr) link_->shutdown();
  if (worker_.joinable()) worker_.join();
  if (process_ == nullptr || process_->wait_for(kLeaveTime)) return;
  log::warning("{} has not ended; ending it", name_);
  process_->send_signal(SIGTERM);
  process_->wait_for(kTermTime);
}

void Launcher::abandon() {
  // mpirun ends the ranks of a job that lost one; a child of ours has nobody else, and mpirun gives
  // this process two seconds to end with its own exit code.
  if (process_ != nullptr && own_child_) process_->send_signal(SIGKILL);
}

std::optional<Error> Launcher::ended() {
  if (process_ == nullptr) return std::nullopt;
  const auto status = process_->poll();
  if (!status) return std::nullopt;
  return Error(exit_code_of(*status),
      fmt::format("the ranks ended before they were ready: {} {}{}", name_, describe_exit(*status),
          quiet_ ? "; --log-level debug shows its messages" : ""));
}

}  // namespace millrace
