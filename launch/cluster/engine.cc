#include "launch/cluster/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <chrono>
#include <thread>

#include "comm/mpi_world.h"
#include "engine/base/log.h"
#include "engine/base/status.h"
#include "engine/model/cost.h"
#include "launch/cluster/replica_shell.h"

namespace millrace {

namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr auto kPollInterval = milliseconds(200);
constexpr auto kProgressInterval = std::chrono::seconds(5);
// Between the end of the workers' process and the coordinator's word on why.
constexpr auto kLastWords = milliseconds(500);
constexpr auto kStopTime = milliseconds(2000);

// What can be known to be impossible before anything is started.
void check_layout(const ModelConfig& model, const EngineConfig& engine) {
  cut_stages(model, engine);
  shard_heads(model.num_heads, model.num_kv_heads, engine.tp, engine.tp - 1);
}

}  // namespace

struct Engine::Impl {
  Impl(const LaunchConfig& launch, OnLost on_lost, std::shared_ptr<const Checkpoint> opened)
      : config(launch),
        mode(choose_mode(launch.engine, launched_by_mpi() ? launcher_size() : -1)),
        checkpoint(opened ? std::move(opened)
                          : open_checkpoint(launch.engine.model_path, launch.engine.dummy_weights)),
        shell({.engine = launch.engine,
                  .max_queue = launch.max_queue,
                  .max_stretch = launch.max_itl_stretch,
                  .cache_key = random_sip_key(),
                  .hang_timeout = Millis{launch.engine.timeout_s} * 1000},
            io, std::move(on_lost), launch.on_trace) {
    check_layout(checkpoint->config(), launch.engine);
    launcher = std::make_unique<Launcher>(
        config, mode, io, shell.link_events(), [this](int rank, std::unique_ptr<WorkerLink> link) {
          shell.add_link(rank, std::move(link));
        });
    boost::asio::post(io, [this] { shell.start_ticking(); });
    thread = std::thread([this] { io.run(); });
  }

  ~Impl() {
    shell.expect_end();
    boost::asio::post(io, [this] { shell.handle(StopEvent{"millrace is ending"}); });
    shell.wait(kStopTime, /*finished_only=*/true);
    const auto finished = shell.view().finished;
    if (!finished || finished->exit_code != ExitCode::kOk) launcher->abandon();
    launcher->stop();
    work.reset();
    io.stop();
    thread.join();
  }

  void wait_until_ready() {
    const int num_ranks = config.engine.tp * config.engine.pp;
    log::info("loading {} on {} rank{}", checkpoint->name(), num_ranks, num_ranks == 1 ? "" : "s");
    const auto began = steady_clock::now();
    auto next_line = began + kProgressInterval;
    while (!shell.wait(kPollInterval, /*finished_only=*/false)) {
      const auto ended = launcher->ended();
      if (ended && !shell.wait(kLastWords, /*finished_only=*/true)) throw Error(*ended);
      if (steady_clock::now() < next_line) continue;
      next_line += kProgressInterval;
      log::info("loading: {} of {} ranks connected, {} s", shell.view().num_links, num_ranks,
          std::chrono::duration_cast<std::chrono::seconds>(steady_clock::now() - began).count());
    }
    const auto view = shell.view();
    if (view.finished) throw Error(view.finished->exit_code, view.finished->message);
    ready = *view.ready;
    announce(steady_clock::now() - began);
  }

  void announce(steady_clock::duration took) const {
    for (const Ready& rank : ready.ranks) log::info("rank {}: {}", rank.rank, rank.description);
    log::info("ready after {:.1f} s: tp {} x pp {}, KV cache of {} tokens",
        std::chrono::duration<double>(took).count(), config.engine.tp, config.engine.pp,
        int64_t{ready.num_blocks} * config.engine.block_size);
  }

  const LaunchConfig config;
  const LaunchMode mode;
  const std::shared_ptr<const Checkpoint> checkpoint;
  boost::asio::io_context io{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work{io.get_executor()};
  ReplicaShell shell;  // its links end before io
  std::unique_ptr<Launcher> launcher;
  std::atomic<RequestId> next_id{1};
  BecameReady ready;
  std::thread thread;  // the coordinator's
};

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;

std::unique_ptr<Engine> Engine::start(
    const LaunchConfig& config, OnLost on_lost, std::shared_ptr<const Checkpoint> checkpoint) {
  auto impl = std::make_unique<Impl>(config, std::move(on_lost), std::move(checkpoint));
  impl->wait_until_ready();
  return std::unique_ptr<Engine>(new Engine(std::move(impl)));
}

RequestId Engine::submit(Request request, EmissionCallback callback) {
  const RequestId id = impl_->next_id.fetch_add(1);
  impl_->shell.submit(id, std::move(request), std::move(callback));
  return id;
}

void Engine::cancel(RequestId id) {
  boost::asio::post(impl_->io, [impl = impl_.get(), id] { impl->shell.cancel(id); });
}

CoordinatorStats Engine::stats() const { return impl_->shell.stats(); }

bool Engine::healthy() const { return stats().healthy; }

const Checkpoint& Engine::model() const { return *impl_->checkpoint; }

const std::vector<Figure>& Engine::figures() const { return impl_->ready.ranks.front().figures; }

int32_t Engine::max_model_len() const {
  const int32_t configured = impl_->config.engine.max_model_len;
  const int64_t longest = configured > 0 ? configured : impl_->checkpoint->config().max_position;
  const int64_t room = int64_t{impl_->ready.num_blocks} * impl_->config.engine.block_size;
  return static_cast<int32_t>(std::min(longest, room));
}

}  // namespace millrace
