#include "engine/worker/worker.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <new>
#include <thread>

#include "engine/base/check.h"
#include "engine/base/hash.h"
#include "engine/base/log.h"
#include "engine/base/thread_pool.h"
#include "engine/model/cost.h"
#include "engine/worker/executor.h"
#include "engine/worker/session.h"

namespace millrace {

namespace {

// Of the memory that is free after loading, what the KV cache may take when nothing is said: other
// programs run on a machine without a GPU too.
constexpr double kKvShareOfFree = 0.4;

// Everything a rank holds between kWelcome and its end.
class Rank {
 public:
  Rank(const WorkerContext& context, WorkerSession& session, const EngineConfig& config)
      : context_(context),
        session_(session),
        config_(config),
        topology_(config.tp, config.pp, context.rank),
        single_comm_(make_single_comm()),
        tp_(config.tp > 1 ? *context.tp_comm : *single_comm_),
        pp_(topology_, context.peers),
        device_(make_cpu_device()),
        pool_(num_threads()),
        ops_(make_cpu_ops(pool_)) {
    CHECK(config.tp == 1 || context.tp_comm != nullptr);
    CHECK(config.pp == 1 || context.peers != nullptr);
  }

  Ready load() {
    const auto checkpoint = open_checkpoint(config_.model_path);
    const ModelConfig& model = checkpoint->config();
    const Stage stage = cut_stages(model, config_)[static_cast<size_t>(topology_.pp_rank())];
    max_position_ = config_.max_model_len > 0 ? config_.max_model_len : model.max_position;
    const DecoderLimits limits{config_.max_num_batched_tokens, config_.max_num_seqs, max_position_};
    decoder_ = std::make_unique<Decoder>(*checkpoint, stage, limits, *ops_, tp_, *device_,
        [this] { session_.progress().fetch_add(1); });
    Ready ready;
    ready.rank = context_.rank;
    ready.weight_bytes = decoder_->weight_bytes();
    ready.kv_bytes_per_block = KvCache::bytes_per_block(
        decoder_->num_layers(), decoder_->attention_shape(), config_.block_size);
    ready.num_blocks = count_blocks(ready.kv_bytes_per_block);
    ready.config_hash = hash_combine(
        model.hash(), static_cast<uint64_t>(config_.tp) << 32 | static_cast<uint64_t>(config_.pp));
    const AttentionShape& shape = decoder_->attention_shape();
    ready.description = fmt::format(
        "{} ({}), {} thread{}, layers {}-{}, {} of {} heads, weights {:.1f} MiB", device_->name(),
        cpu_kernel_name(), pool_.num_threads(), pool_.num_threads() == 1 ? "" : "s",
        stage.first_layer, stage.first_layer + stage.num_layers - 1, shape.num_heads,
        model.num_heads, static_cast<double>(ready.weight_bytes) / (1 << 20));
    return ready;
  }

  void start(const Start& start) {
    executor_ = std::make_unique<Executor>(
        topology_, config_, max_position_, start.num_blocks, *decoder_, *ops_, tp_, pp_, *device_);
  }

  // `idle`: how long this rank waited for the plan.
  void step(const StepPlan& plan, std::chrono::nanoseconds idle) {
    set_check_step(plan.sequence);
    StepResult result = executor_->run(plan, session_.progress());
    result.idle_us +=
        static_cast<uint32_t>(std::chrono::duration_cast<std::chrono::microseconds>(idle).count());
    if (topology_.tp_rank() == 0) session_.send(FrameType::kResult, encode(result));
    session_.step_done();
  }

 private:
  int num_threads() const {
    if (config_.threads > 0) return config_.threads;
    const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    return std::max(1, cores / std::max(1, context_.local_size));
  }

  uint32_t count_blocks(int64_t bytes_per_block) const {
    const int64_t bytes =
        config_.kv_cache_bytes > 0
            ? config_.kv_cache_bytes
            : static_cast<int64_t>(static_cast<double>(device_->free_bytes()) * kKvShareOfFree /
                                   std::max(1, context_.local_size));
    const int64_t blocks_per_sequence =
        (max_position_ + config_.block_size - 1) / config_.block_size;
    const int64_t blocks =
        std::min(bytes / bytes_per_block, blocks_per_sequence * config_.max_num_seqs);
    if (blocks < 1) {
      throw Error(ExitCode::kOutOfMemory,
          fmt::format("the KV cache has room for no block: {:.1f} MiB for blocks of {:.1f} "
                      "MiB; raise --kv-cache-memory or free memory",
              static_cast<double>(bytes) / (1 << 20),
              static_cast<double>(bytes_per_block) / (1 << 20)));
    }
    return static_cast<uint32_t>(blocks);
  }

  const WorkerContext& context_;
  WorkerSession& session_;
  const EngineConfig config_;
  const Topology topology_;
  std::unique_ptr<DeviceComm> single_comm_;
  TpOps tp_;
  PpLink pp_;
  std::unique_ptr<Device> device_;
  ThreadPool pool_;
  std::unique_ptr<Ops> ops_;
  int32_t max_position_ = 0;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<Executor> executor_;
};

template <typename T>
T read_body(const WorkerSession::Frame& frame, const char* what) {
  T value;
  if (!decode(frame.body(), &value)) {
    throw Error(ExitCode::kFailure, fmt::format("the coordinator sent a malformed {}", what));
  }
  return value;
}

void serve(const WorkerContext& context, WorkerSession& session) {
  std::unique_ptr<Rank> rank;
  auto waiting_since = std::chrono::steady_clock::now();
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
        break;
      case FrameType::kPlan: {
        const auto plan = read_body<StepPlan>(*frame, "plan");
        rank->step(plan, std::chrono::steady_clock::now() - waiting_since);
        break;
      }
      case FrameType::kShutdown: return;
      default:
        throw Error(ExitCode::kFailure,
            fmt::format("the coordinator sent a frame of type {}", static_cast<int>(frame->type)));
    }
    waiting_since = std::chrono::steady_clock::now();
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
