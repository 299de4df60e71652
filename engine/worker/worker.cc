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
#include "engine/model/cost.h"
#include "engine/worker/backend.h"
#include "engine/worker/comm_bench.h"
#include "engine/worker/executor.h"
#include "engine/worker/kernel_bench.h"
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
        checkpoint_(open_checkpoint(config.model_path, config.dummy_weights)),
        backend_(make_backend(backend_config())),
        device_(backend_->device()),
        tp_(backend_->tp()),
        pp_(topology_, backend_->peers()),
        setup_used_(device_.used_bytes()),
        setup_allocated_(device_.allocated_bytes()) {}
  ~Rank() {
    stop_ = true;
    if (collector_.joinable()) collector_.join();
  }

  Ready load() {
    const ModelConfig& model = checkpoint_->config();
    const Stage stage = cut_stages(model, config_)[static_cast<size_t>(topology_.pp_rank())];
    const int32_t longest = config_.max_model_len > 0 ? config_.max_model_len : model.max_position;
    max_position_ = longest;
    const DecoderLimits limits{config_.max_num_batched_tokens, config_.max_num_seqs, longest};
    const auto began = std::chrono::steady_clock::now();
    decoder_ = std::make_unique<Decoder>(*checkpoint_, stage, limits, backend_->ops(), tp_, device_,
        [this] { session_.progress().fetch_add(1); });
    log::info("weights: {:.1f} MiB in {:.2f} s", mib(decoder_->weight_bytes()),
        std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
    Ready ready;
    ready.figures = measure();
    ready.rank = context_.rank;
    ready.weight_bytes = decoder_->weight_bytes();
    ready.kv_bytes_per_block = KvCache::bytes_per_block(device_.activation_dtype(),
        decoder_->num_layers(), decoder_->attention_shape(), config_.block_size);
    ready.num_blocks = count_blocks(ready.kv_bytes_per_block);
    ready.config_hash = hash_combine(
        model.hash(), static_cast<uint64_t>(config_.tp) << 32 | static_cast<uint64_t>(config_.pp));
    ready.description =
        fmt::format("{} ({}), layers {}-{}, {} of {} heads, weights {:.1f} MiB", device_.name(),
            backend_->description(), stage.first_layer, stage.first_layer + stage.num_layers - 1,
            decoder_->attention_shape().num_heads, model.num_heads, mib(ready.weight_bytes));
    return ready;
  }

  void start(const Start& start) {
    if (config_.bench != BenchKind::kNone) return;
    executor_ = std::make_unique<Executor>(topology_, config_, max_position_, start.num_blocks,
        *decoder_, backend_->ops(), tp_, pp_, device_);
    executor_->warm_up(session_.progress());
    log_memory(start.num_blocks);
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
  std::vector<Figure> measure() {
    const ModelConfig& model = checkpoint_->config();
    switch (config_.bench) {
      case BenchKind::kNone: return {};
      case BenchKind::kKernels:
        return bench_kernels(device_, backend_->ops(), *decoder_, config_, max_position_);
      case BenchKind::kComm:
        return bench_comm(topology_, *backend_, config_, model.hidden_size, model.vocab_size);
    }
    return {};
  }

  // Room on a GPU for what comes after the cache: graphs, and what libraries load and connect when
  // they are first called.
  static constexpr int64_t kLaterBytes = int64_t{3} << 29;

  static double mib(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

  // What was planned for, beside what the system says is gone.
  void log_memory(uint32_t num_blocks) const {
    const int64_t weights = decoder_->weight_bytes();
    const int64_t kv = int64_t{num_blocks + 1} *
                       KvCache::bytes_per_block(device_.activation_dtype(), decoder_->num_layers(),
                           decoder_->attention_shape(), config_.block_size);
    const int64_t comm = backend_->comm_bytes();
    const int64_t kernels = std::max<int64_t>(0, setup_used_ - comm);
    const int64_t workspace = kernels + device_.allocated_bytes() - setup_allocated_ - weights - kv;
    const int64_t graphs = executor_->graph_bytes();
    const int64_t planned = weights + workspace + comm + graphs + kv;
    std::string line = fmt::format(
        "memory plan: weights {:.1f} MiB, workspace {:.1f}, communication {:.1f}, graphs {:.1f}, "
        "KV cache {:.1f} ({} tokens), together {:.1f}",
        mib(weights), mib(workspace), mib(comm), mib(graphs), mib(kv),
        int64_t{num_blocks} * config_.block_size, mib(planned));
    if (const int64_t used = device_.used_bytes(); used > 0) {
      line += fmt::format("; in use {:.1f} ({:+.2f} %)", mib(used),
          100.0 * static_cast<double>(used - planned) / static_cast<double>(planned));
    }
    log::info("{}", line);
  }

  // The shapes that this rank computes, before its weights are there.
  BackendConfig backend_config() const {
    const ModelConfig& model = checkpoint_->config();
    BackendConfig config;
    config.topology = topology_;
    config.local_rank = context_.local_rank;
    config.local_size = context_.local_size;
    config.engine = config_;
    config.activation = activation_dtype();
    config.attention = shard_attention(model, config_.tp, topology_.tp_rank());
    config.hidden_size = model.hidden_size;
    config.vocab_size = model.vocab_size;
    config.tp_comm = context_.tp_comm;
    config.peers = context_.peers;
    config.broadcast = context_.broadcast;
    return config;
  }

  // "auto" on a GPU: bf16 for what was stored so, else f16, which keeps more of a quantized weight.
  DType activation_dtype() const {
    switch (config_.dtype) {
      case ActivationType::kFloat32: return DType::kF32;
      case ActivationType::kFloat16: return DType::kF16;
      case ActivationType::kBFloat16: return DType::kBF16;
      case ActivationType::kAuto: break;
    }
    const TensorInfo* stored = checkpoint_->find("model.embed_tokens.weight");
    return stored != nullptr && stored->dtype == DType::kBF16 ? DType::kBF16 : DType::kF16;
  }

  uint32_t count_blocks(int64_t bytes_per_block) const {
    const double share = device_.kv_share() / (device_.asynchronous() ? 1 : context_.local_size);
    const int64_t free = device_.free_bytes();
    const int64_t bytes = config_.kv_cache_bytes > 0
                              ? config_.kv_cache_bytes
                              : std::min(static_cast<int64_t>(static_cast<double>(free) * share),
                                    free - (device_.asynchronous() ? kLaterBytes : 0));
    const int64_t blocks_per_sequence =
        (max_position_ + config_.block_size - 1) / config_.block_size;
    const int64_t blocks =
        std::min(bytes / bytes_per_block, blocks_per_sequence * config_.max_num_seqs);
    if (blocks < 1) {
      throw Error(ExitCode::kOutOfMemory,
          "the KV cache has room for no block: {:.1f} MiB for blocks of {:.1f} "
          "MiB; raise --kv-cache-memory or free memory",
          mib(bytes), mib(bytes_per_block));
    }
    return static_cast<uint32_t>(blocks);
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
          if (now - since > kCheckInterval) backend_->check();
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
  const std::shared_ptr<const Checkpoint> checkpoint_;
  const std::unique_ptr<Backend> backend_;
  Device& device_;
  TpOps tp_;
  PpLink pp_;
  const int64_t setup_used_, setup_allocated_;  // of device memory, before the weights
  int32_t max_position_ = 0;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<Executor> executor_;
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
        session.send(FrameType::kReady, encode(rank->load()));
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
