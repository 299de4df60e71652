#include "engine/worker/worker.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <new>
#include <thread>

#include "engine/base/check.h"
#include "engine/base/hash.h"
#include "engine/base/log.h"
#include "engine/worker/comm_bench.h"
#include "engine/worker/kernel_bench.h"
#include "engine/worker/loaded_stage.h"
#include "engine/worker/session.h"

namespace millrace {

namespace {

// How often the collector looks whether a step has ended: well below a step's time.
constexpr auto kPollInterval = std::chrono::microseconds(10);
// A step that takes longer makes it ask whether a peer or the device has failed.
constexpr auto kCheckInterval = std::chrono::milliseconds(100);
// For the last frame to leave.
constexpr auto kFrameTime = std::chrono::milliseconds(200);

// Everything a rank holds between kWelcome and its end.
class Rank {
 public:
  Rank(const WorkerContext& context, WorkerSession& session, const EngineConfig& config)
      : context_(context),
        session_(session),
        config_(config),
        topology_(config.tp, config.pp, context.rank),
        loaded_(load()),
        device_(loaded_.device()) {}
  ~Rank() {
    stop_ = true;
    if (collector_.joinable()) collector_.join();
  }

  Ready ready() {
    Decoder& decoder = loaded_.decoder();
    Ready ready;
    ready.figures = measure();
    ready.rank = context_.rank;
    ready.weight_bytes = decoder.weight_bytes();
    ready.kv_bytes_per_block = loaded_.bytes_per_block();
    ready.num_blocks = loaded_.count_blocks(device_.free_bytes());
    ready.config_hash = hash_combine(loaded_.model().hash(),
        static_cast<uint64_t>(config_.tp) << 32 | static_cast<uint64_t>(config_.pp));
    const Stage& stage = loaded_.stage();
    ready.description = fmt::format("{} ({}), layers {}-{}, {} of {} heads, weights {:.1f} MiB",
        device_.name(), loaded_.backend().description(), stage.first_layer,
        stage.first_layer + stage.num_layers - 1, decoder.attention_shape().num_heads,
        loaded_.model().num_heads, mib(ready.weight_bytes));
    return ready;
  }

  void start(const Start& start) {
    if (config_.bench != BenchKind::kNone) return;
    executor_ = &loaded_.make_executor(start.num_blocks);
    executor_->warm_up(session_.progress());
    log_memory();
    if (!device_.asynchronous()) return;
    collector_ = std::thread([this] { collect(); });
  }

  void step(const StepPlan& plan) {
    set_check_step(plan.sequence);
    executor_->run(plan, session_.progress());
    steps_run_.store(plan.sequence + 1);
    if (!device_.asynchronous()) report(plan.sequence);
  }

 private:
  LoadedStage load() {
    auto checkpoint = open_checkpoint(config_.model_path, config_.dummy_weights);
    BackendConfig config = backend_config(*checkpoint, config_, topology_);
    config.local_rank = context_.local_rank;
    config.local_size = context_.local_size;
    config.tp_comm = context_.tp_comm;
    config.peers = context_.peers;
    config.broadcast = context_.broadcast;
    return {std::move(checkpoint), config_, topology_, context_.local_size, make_backend(config),
        [this] { session_.progress().fetch_add(1); }};
  }

  std::vector<Figure> measure() {
    const ModelConfig& model = loaded_.model();
    Backend& backend = loaded_.backend();
    switch (config_.bench) {
      case BenchKind::kNone: return {};
      case BenchKind::kKernels:
        return bench_kernels(
            device_, backend.ops(), loaded_.decoder(), config_, loaded_.max_position());
      case BenchKind::kComm:
        return bench_comm(topology_, backend, config_, model.hidden_size, model.vocab_size);
    }
    return {};
  }

  static double mib(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

  // What was planned for, beside what the system says is gone: on the CPU little yet, for memory is
  // taken as it is written to.
  void log_memory() const {
    const MemoryPlan plan = loaded_.memory_plan();
    const int64_t planned = plan.together(), used = device_.used_bytes();
    log::info(
        "memory plan: weights {:.1f} MiB, workspace {:.1f}, communication {:.1f}, graphs {:.1f}, "
        "KV cache {:.1f} ({} tokens), together {:.1f}; {} {:.1f}{}",
        mib(plan.weights), mib(plan.workspace), mib(plan.comm), mib(plan.graphs), mib(plan.kv),
        plan.kv_tokens, mib(planned), device_.asynchronous() ? "in use" : "resident so far",
        mib(used),
        device_.asynchronous()
            ? fmt::format(" ({:+.2f} %)",
                  100.0 * static_cast<double>(used - planned) / static_cast<double>(planned))
            : "");
  }

  void report(uint64_t n) {
    if (config_.profile) session_.send(FrameType::kTrace, encode(executor_->trace(n)));
    const StepResult result = executor_->result(n);
    if (topology_.tp_rank() == 0) session_.send(FrameType::kResult, encode(result));
    session_.step_done();
  }

  // The collector's thread: takes results as the device ends its steps. A device or peer that
  // fails or hangs cannot be used again, nor can a call that waits for it be ended: the process is.
  void collect() {
    try {
      for (uint64_t n = 0; !stop_; ++n) {
        auto since = std::chrono::steady_clock::now();
        while (n >= steps_run_.load() || !executor_->done(n)) {
          if (stop_) return;
          const auto now = std::chrono::steady_clock::now();
          if (n >= steps_run_.load()) since = now;
          if (now - since > std::chrono::seconds(config_.timeout_s)) {
            throw Error(ExitCode::kWorkerLost, "step {} did not end within --timeout {} s", n,
                config_.timeout_s);
          }
          if (now - since > kCheckInterval) loaded_.backend().check();
          std::this_thread::sleep_for(kPollInterval);
        }
        report(n);
        session_.progress().fetch_add(1);
      }
    } catch (const Error& error) {
      if (stop_) return;
      session_.send(FrameType::kFailed,
          encode(Failed{context_.rank, static_cast<int32_t>(error.exit_code()), error.what()}));
      std::this_thread::sleep_for(kFrameTime);
      _exit(static_cast<int>(error.exit_code()));
    }
  }

  const WorkerContext& context_;
  WorkerSession& session_;
  const EngineConfig config_;
  const Topology topology_;
  LoadedStage loaded_;
  Device& device_;
  Executor* executor_ = nullptr;  // in loaded_, once started
  std::atomic<uint64_t> steps_run_{0};
  std::atomic<bool> stop_{false};
  std::thread collector_;
};

template <typename T>
T read_body(const WorkerSession::Frame& frame, const char* what) {
  T value;
  if (!decode(frame.body(), &value)) {
    throw Error(ExitCode::kFailure, "the coordinator sent a malformed {}", what);
  }
  return value;
}

void serve(const WorkerContext& context, WorkerSession& session) {
  std::unique_ptr<Rank> rank;
  while (auto frame = session.receive()) {
    switch (frame->type) {
      case FrameType::kWelcome:
        rank = std::make_unique<Rank>(
            context, session, read_body<EngineConfig>(*frame, "configuration"));
        session.send(FrameType::kReady, encode(rank->ready()));
        break;
      case FrameType::kStart:
        if (rank == nullptr) throw Error(ExitCode::kFailure, "start came before the configuration");
        rank->start(read_body<Start>(*frame, "start"));
        session.send(FrameType::kStarted, {});
        break;
      case FrameType::kPlan: rank->step(read_body<StepPlan>(*frame, "plan")); break;
      case FrameType::kShutdown: return;
      default:
        throw Error(ExitCode::kFailure, "the coordinator sent a frame of type {}",
            static_cast<int>(frame->type));
    }
  }
}

}  // namespace

ExitCode run_worker(const WorkerContext& context) {
  set_check_scope(context.rank);
  WorkerSession session(context.rank, *context.link, context.own_process);
  Failed failed{context.rank, static_cast<int32_t>(ExitCode::kOk), ""};
  try {
    serve(context, session);
    return ExitCode::kOk;
  } catch (const Error& error) {
    failed.exit_code = static_cast<int32_t>(error.exit_code());
    failed.message = error.what();
  } catch (const std::bad_alloc&) {
    failed.exit_code = static_cast<int32_t>(ExitCode::kOutOfMemory);
    failed.message = "out of host memory: free some, or use more ranks or hosts";
  } catch (const std::exception& error) {
    failed.exit_code = static_cast<int32_t>(ExitCode::kFailure);
    failed.message = error.what();
  }
  session.send(FrameType::kFailed, encode(failed));
  return static_cast<ExitCode>(failed.exit_code);
}

}  // namespace millrace
