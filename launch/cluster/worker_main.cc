#include "launch/cluster/worker_main.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <memory>
#include <thread>

#include "comm/link.h"
#include "comm/mpi_world.h"
#include "engine/base/log_event.h"
#include "engine/base/status.h"
#include "engine/worker/worker.h"
#include "launch/cluster/ticket.h"

namespace millrace {

namespace {

// Of MPI_Finalize, which waits for peers that may be dead.
constexpr auto kFinalizeTime = std::chrono::seconds(3);

// Settings of Open MPI that its user has not made.
void set_mpi_defaults() {
  const char* local_size = getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
  const int num_local = local_size != nullptr ? atoi(local_size) : 1;
  if (num_local >= static_cast<int>(std::thread::hardware_concurrency())) {
    // A rank that spins takes the core that the rank it waits for would run on: an all-reduce of 4
    // ranks on 2 cores takes milliseconds instead of microseconds.
    setenv("OMPI_MCA_mpi_yield_when_idle", "1", /*overwrite=*/0);
  }
  // Open MPI takes two bridges of one address for a way between their hosts, and waits forever. It
  // refuses an exclusion beside an inclusion.
  const std::string bridges = fmt::format("{}", fmt::join(local_bridges(), ","));
  if (getenv("OMPI_MCA_btl_tcp_if_include") == nullptr && !bridges.empty()) {
    setenv("OMPI_MCA_btl_tcp_if_exclude", ("127.0.0.0/8,sppp," + bridges).c_str(), 0);
  }
  // Reading another process's memory is refused in most containers.
  setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", /*overwrite=*/0);
}

LaunchTicket share_ticket(const MpiWorld& world, const Bytes& of_rank_0) {
  LaunchTicket ticket;
  if (!decode(world.broadcast(of_rank_0, /*root=*/0), &ticket)) {
    throw Error(ExitCode::kFailure,
        "rank 0 sent a ticket of another kind: is the same millrace on every host?");
  }
  if (ticket.tp * ticket.pp != world.size()) {
    throw Error(ExitCode::kLayout, "the layout needs {} ranks, but MPI has {}",
        ticket.tp * ticket.pp, world.size());
  }
  return ticket;
}

// The coordinator says when to leave, by its link: a drain outlasts the signals that mpirun and
// terminals send to every rank.
void ignore_signals() {
  for (const int number : {SIGTERM, SIGINT, SIGHUP, SIGUSR1}) signal(number, SIG_IGN);
}

void leave_within(std::chrono::seconds limit, int exit_code) {
  std::thread([limit, exit_code] {
    std::this_thread::sleep_for(limit);
    _exit(exit_code);
  }).detach();
}

}  // namespace

int worker_main() {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  dup2(STDERR_FILENO, STDOUT_FILENO);  // standard output is the coordinator's
  Bytes mine;
  if (launcher_rank() <= 0) mine = read_ticket(STDIN_FILENO);
  set_mpi_defaults();
  MpiWorld world;
  const LaunchTicket ticket = share_ticket(world, mine);
  const Topology topology(ticket.tp, ticket.pp, world.rank());
  const std::string who = fmt::format("rank {}", topology.rank());
  log::init(log::level_from_name(ticket.log_level), who);
  if (ticket.log_json) log::use_json(who);
  std::unique_ptr<DeviceComm> tp_comm;
  if (ticket.tp > 1) tp_comm = world.split(topology.pp_rank(), topology.tp_rank());
  std::unique_ptr<PeerComm> peers;
  if (ticket.pp > 1) peers = world.peers();
  const auto link = dial_coordinator(
      ticket.addresses, ticket.port, ticket.key, topology.rank(), ticket.timeout_s);
  ignore_signals();
  const ExitCode code = run_worker({.rank = topology.rank(),
      .local_rank = world.local_rank(),
      .local_size = world.local_size(),
      .link = link.get(),
      .tp_comm = tp_comm.get(),
      .peers = peers.get(),
      .broadcast = [&world](const Bytes& bytes) { return world.broadcast(bytes, /*root=*/0); },
      .own_process = true});
  leave_within(kFinalizeTime, static_cast<int>(code));
  return static_cast<int>(code);
}

}  // namespace millrace
