// The workers of a replica in the three modes of docs/architecture.md: a thread here, a job that
// mpirun runs for us, or the ranks of the job that this process is rank 0 of. Owned by Engine;
// made, asked and stopped from the main thread.
#pragma once

#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "comm/link.h"
#include "engine/base/status.h"
#include "engine/protocol/engine_config.h"
#include "engine/protocol/trace.h"
#include "launch/cluster/process.h"

namespace millrace {

enum class LaunchMode { kInProcess, kMpirun, kUnderMpi };

struct LaunchConfig {
  EngineConfig engine;
  std::string hostfile;                  // mode 2 over several hosts; empty: this host
  std::string control_address;           // to listen on for workers; empty: chosen
  std::vector<std::string> mpirun_args;  // further arguments of mpirun
  std::string log_level = "info";
  std::string log_format = "text";  // or "json"
  int32_t max_queue = 1024;
  // Every rank's times of every step, on the coordinator's thread; empty: nobody measures.
  std::function<void(int rank, const StepTrace&)> on_trace;
  double max_itl_stretch = 0;          // CoordinatorConfig::max_stretch
  std::optional<double> null_step_ms;  // no model is computed: run_null_worker, one rank
};

// `world_size`: as the MPI launcher's environment tells, -1 without one. Throws Error(kLayout) when
// it disagrees with the degrees, naming the flags to change.
LaunchMode choose_mode(const EngineConfig& engine, int world_size);

// How mpirun is called in mode 2.
struct MpirunConfig {
  int num_ranks = 1;
  std::string program;                  // of the workers, the same path on every host
  std::string hostfile;                 // empty: this host
  std::vector<std::string> extra_args;  // before the program; they win over ours
  bool as_root = false;                 // Open MPI refuses root unless told so
  bool quiet = true;                    // our own sentence names a lost rank
};
std::vector<std::string> mpirun_arguments(const MpirunConfig& config);

class Launcher {
 public:
  // Starts the workers; each link is handed over on the io_context's thread. Throws Error.
  Launcher(const LaunchConfig& config, LaunchMode mode, boost::asio::io_context& io,
      LinkEvents events, LinkListener::OnLink on_link);
  // Destroyed after stop(), and after the io_context has run for the last time.
  Launcher(const Launcher&) = delete;

  // Waits for the workers, whose links have ended, then ends what is left of them.
  void stop();
  // The replica is lost: its workers get no time to leave by themselves.
  void abandon();
  // Once the started process has ended: how, with the code that its own sentence had or that fits.
  std::optional<Error> ended();

 private:
  void start_thread(const LaunchConfig& config, boost::asio::io_context& io, LinkEvents events,
      const LinkListener::OnLink& on_link);
  void start_job(const LaunchConfig& config, LaunchMode mode, boost::asio::io_context& io,
      LinkEvents events, LinkListener::OnLink on_link);
  ProcessConfig process_config(const LaunchConfig& config, LaunchMode mode, Bytes input);

  std::string name_;                        // of the process, for sentences
  bool quiet_ = false;                      // mpirun's own messages are held back
  bool own_child_ = false;                  // mode 3: the process is the worker itself
  std::unique_ptr<LinkListener> listener_;  // modes 2 and 3
  std::unique_ptr<Process> process_;        // modes 2 and 3
  std::unique_ptr<CoordinatorLink> link_;   // mode 1
  std::thread worker_;                      // mode 1
};

}  // namespace millrace
