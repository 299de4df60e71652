// What each command does once its options are known. Main thread; each returns the exit code.
#pragma once

#include "engine/base/status.h"
#include "launch/cli/options.h"

namespace millrace {

ExitCode run_generate(const Options& options);
ExitCode run_chat(const Options& options);
ExitCode run_serve(const Options& options);
ExitCode run_batch_command(const Options& options);
ExitCode run_bench(const Options& options, bool latency);
ExitCode run_device_bench(const Options& options, BenchKind kind);
ExitCode run_serve_bench(const Options& options);
ExitCode run_interference(const Options& options);
ExitCode run_scheduler_bench(const Options& options);
ExitCode run_simulate(const Options& options);
ExitCode run_fit(const Options& options);
ExitCode run_doctor(const Options& options);

}  // namespace millrace
