// `millrace run-batch`, `bench` and `simulate`: rooms of their own, given an engine or none.
#include <fmt/format.h>

#include <cstdlib>

#include "engine/base/log.h"
#include "launch/bench/saved_model.h"
#include "launch/cli/answer.h"
#include "launch/cli/commands.h"
#include "launch/cli/session.h"

namespace millrace {

namespace {

// `work` on the session; the replica's own last words, which name the rank, win over its error.
template <typename Work>
auto run_guarded(const Session& session, Work work) {
  try {
    return work();
  } catch (const Error& error) {
    if (error.exit_code() == ExitCode::kWorkerLost) session.throw_if_lost();
    throw;
  }
}

}  // namespace

ExitCode run_batch_command(const Options& options) {
  if (options.batch.input.empty() || options.batch.output.empty()) {
    throw Error(ExitCode::kUsage, "run-batch needs -i INPUT.jsonl and -o OUTPUT.jsonl");
  }
  Session session(options, Session::Text::kNeeded);
  const BatchSummary summary = run_guarded(
      session, [&] { return run_batch(options.batch, session.engine(), session.model()); });
  log::info(
      "{} answered, {} failed in {:.1f} s: {} prompt and {} completion tokens, {:.1f} "
      "completion tokens/s; results in {}",
      summary.completed, summary.failed, summary.seconds, summary.prompt_tokens,
      summary.completion_tokens,
      static_cast<double>(summary.completion_tokens) / std::max(summary.seconds, 1e-9),
      options.batch.output);
  return summary.failed > 0 ? ExitCode::kRowsFailed : ExitCode::kOk;
}

namespace {

ExitCode write_report(const Options& options, Session& session, const BenchReport& report) {
  if (!options.bench.save_model.empty()) {
    EngineConfig engine = options.launch.engine;
    engine.max_model_len = session.engine().max_model_len();
    write_step_model(options.bench.save_model, engine, session.engine().stats().scheduler);
  }
  write_stdout(options.json ? report.json + "\n" : report.table);
  return ExitCode::kOk;
}

}  // namespace

ExitCode run_interference(const Options& options) {
  Session session(options, Session::Text::kNotNeeded);
  Engine& engine = session.engine();
  return write_report(options, session, run_guarded(session, [&] {
    return bench_interference(
        options.bench, engine, engine.model().config().vocab_size, engine.max_model_len());
  }));
}

ExitCode run_bench(const Options& options, bool latency) {
  const EngineConfig& engine = options.launch.engine;
  const Limits limits =
      measure_limits(*open_checkpoint(engine.model_path, engine.dummy_weights), engine);
  const auto idle = std::make_shared<StepIdle>();
  Options watched = options;
  if (latency) {
    watched.launch.on_trace = [idle](int rank, const StepTrace& step) { idle->add(rank, step); };
  }
  Session session(watched, Session::Text::kNotNeeded);
  const BenchReport report = run_guarded(session, [&] {
    Engine& running = session.engine();
    if (!latency) {
      return bench_throughput(
          options.bench, running, running.model(), limits, running.max_model_len());
    }
    return bench_latency(
        options.bench, running, running.model(), limits, running.max_model_len(), *idle);
  });
  return write_report(options, session, report);
}

ExitCode run_device_bench(const Options& options, BenchKind kind) {
  Options measuring = options;
  EngineConfig& engine = measuring.launch.engine;
  engine.bench = kind;
  const bool comm = kind == BenchKind::kComm;
  if (comm && engine.tp * engine.pp == 1) {
    throw Error(ExitCode::kUsage, "bench comm needs several ranks: give -tp or -pp");
  }
  const DeviceLimits limits = measure_device(engine.device, /*with_peers=*/comm);
  Session session(measuring, Session::Text::kNotNeeded);
  const BenchReport report = report_figures(session.engine().figures(), limits, comm,
      fmt::format("{}, tp {} x pp {}, rank 0", session.model().name, engine.tp, engine.pp));
  write_stdout(options.json ? report.json + "\n" : report.table);
  return ExitCode::kOk;
}

ExitCode run_serve_bench(const Options& options) {
  ServeBenchConfig config = options.serve_bench;
  // As other clients of OpenAI's API find theirs.
  const char* key = std::getenv("OPENAI_API_KEY");
  if (config.target.api_key.empty() && key != nullptr) config.target.api_key = key;
  const ServeBenchReport run = bench_serve(config);
  write_stdout(options.json ? run.report.json + "\n" : run.report.table);
  if (run.failed == 0) return ExitCode::kOk;
  log::error("{} requests failed; the first: {}", run.failed, run.error);
  return ExitCode::kRowsFailed;
}

ExitCode run_scheduler_bench(const Options& options) {
  SchedulerBenchConfig config = options.scheduler_bench;
  config.engine = options.launch.engine;
  const SchedulerBenchReport report = bench_scheduler(config);
  write_stdout(options.json ? report.json + "\n" : report.table);
  return ExitCode::kOk;
}

ExitCode run_simulate(const Options& options) {
  SimulateConfig config = options.simulate;
  config.engine = options.launch.engine;
  config.max_itl_stretch = options.launch.max_itl_stretch;
  const SimulateReport report = run_simulation(config);
  write_stdout(options.json ? report.json + "\n" : report.table);
  return ExitCode::kOk;
}

}  // namespace millrace
