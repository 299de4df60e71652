#include "launch/cluster/engine.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <chrono>

#include "comm/mpi_world.h"
#include "engine/base/check.h"
#include "engine/base/log.h"
#include "engine/model/cost.h"

namespace millrace {

namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr auto kTickInterval = milliseconds(200);
constexpr auto kPollInterval = milliseconds(200);
constexpr auto kProgressInterval = std::chrono::seconds(5);
// Between the end of the workers' process and the coordinator's word on why.
constexpr auto kLastWords = milliseconds(500);
constexpr auto kStopTime = milliseconds(2000);

Millis now() {
  return std::chrono::duration_cast<milliseconds>(steady_clock::now().time_since_epoch()).count();
}

// What can be known to be impossible before anything is started.
void check_layout(const ModelConfig& model, const EngineConfig& engine) {
  cut_stages(model, engine);
  shard_heads(model.num_heads, model.num_kv_heads, engine.tp, engine.tp - 1);
}

}  // namespace

Engine::Engine(
    const LaunchConfig& config, OnLost on_lost, std::shared_ptr<const Checkpoint> checkpoint)
    : config_(config),
      mode_(choose_mode(config.engine, launched_by_mpi() ? launcher_size() : -1)),
      checkpoint_(checkpoint
                      ? std::move(checkpoint)
                      : open_checkpoint(config.engine.model_path, config.engine.dummy_weights)),
      on_lost_(std::move(on_lost)),
      coordinator_({.engine = config.engine,
                       .max_queue = config.max_queue,
                       .max_stretch = config.max_itl_stretch,
                       .cache_key = random_sip_key(),
                       .hang_timeout = Millis{config.engine.timeout_s} * 1000},
          now()),
      links_(static_cast<size_t>(config.engine.tp) * static_cast<size_t>(config.engine.pp)) {
  check_layout(checkpoint_->config(), config.engine);
  LinkEvents events{[this](int rank, Bytes frame) { on_frame(rank, std::move(frame)); },
      [this](int rank, const std::string& reason) {
        if (!over_) handle(LinkClosedEvent{rank, reason});
      }};
  launcher_ = std::make_unique<Launcher>(config_, mode_, io_, std::move(events),
      [this](int rank, std::unique_ptr<WorkerLink> link) { add_link(rank, std::move(link)); });
  boost::asio::post(io_, [this] { tick(); });
  thread_ = std::thread([this] { io_.run(); });
}

Engine::~Engine() {
  {
    const std::lock_guard lock(mutex_);
    end_expected_ = true;
  }
  boost::asio::post(io_, [this] { handle(StopEvent{"millrace is ending"}); });
  wait(kStopTime, /*finished_only=*/true);
  const auto finished = view().finished;
  if (!finished || finished->exit_code != ExitCode::kOk) launcher_->abandon();
  launcher_->stop();
  work_.reset();
  io_.stop();
  thread_.join();
}

void Engine::wait_until_ready() {
  const int num_ranks = config_.engine.tp * config_.engine.pp;
  log::info("loading {} on {} rank{}", checkpoint_->name(), num_ranks, num_ranks == 1 ? "" : "s");
  const auto began = steady_clock::now();
  auto next_line = began + kProgressInterval;
  while (!wait(kPollInterval, /*finished_only=*/false)) {
    const auto ended = launcher_->ended();
    if (ended && !wait(kLastWords, /*finished_only=*/true)) throw Error(*ended);
    if (steady_clock::now() < next_line) continue;
    next_line += kProgressInterval;
    log::info("loading: {} of {} ranks connected, {} s", view().num_links, num_ranks,
        std::chrono::duration_cast<std::chrono::seconds>(steady_clock::now() - began).count());
  }
  const View reached = view();
  if (reached.finished) throw Error(reached.finished->exit_code, reached.finished->message);
  ready_ = *reached.ready;
  for (const Ready& rank : ready_.ranks) log::info("rank {}: {}", rank.rank, rank.description);
  log::info("ready after {:.1f} s: tp {} x pp {}, KV cache of {} tokens",
      std::chrono::duration<double>(steady_clock::now() - began).count(), config_.engine.tp,
      config_.engine.pp, int64_t{ready_.num_blocks} * config_.engine.block_size);
}

std::unique_ptr<Engine> Engine::start(
    const LaunchConfig& config, OnLost on_lost, std::shared_ptr<const Checkpoint> checkpoint) {
  std::unique_ptr<Engine> engine(new Engine(config, std::move(on_lost), std::move(checkpoint)));
  engine->wait_until_ready();
  return engine;
}

// Requests that come together are planned together.
RequestId Engine::submit(Request request, EmissionCallback callback) {
  const RequestId id = next_id_.fetch_add(1);
  const std::lock_guard lock(mutex_);
  arrivals_.push_back({id, std::move(request), std::move(callback)});
  if (arrivals_.size() == 1) boost::asio::post(io_, [this] { take_arrivals(); });
  return id;
}

void Engine::cancel(RequestId id) {
  boost::asio::post(io_, [this, id] {
    callbacks_.erase(id);
    handle(CancelEvent{id});
  });
}

void Engine::take_arrivals() {
  std::vector<Arrival> arrived;
  {
    const std::lock_guard lock(mutex_);
    arrived.swap(arrivals_);
  }
  for (Arrival& each : arrived) {
    callbacks_.emplace(each.id, std::move(each.callback));
    handle(SubmitEvent{each.id, std::move(each.request), /*more=*/&each != &arrived.back()});
  }
}

// What is only looked at changes no plan: it does not reach the coordinator, which would refuse it
// where nobody had asked.
void Engine::on_frame(int rank, Bytes frame) {
  FrameHeader header;
  if (!config_.on_trace || !decode(frame, &header) || header.type != FrameType::kTrace) {
    return handle(FrameEvent{rank, std::move(frame)});
  }
  StepTrace trace;
  if (decode(std::span<const uint8_t>(frame).subspan(kFrameHeaderBytes), &trace)) {
    config_.on_trace(rank, trace);
  }
}

void Engine::add_link(int rank, std::unique_ptr<WorkerLink> link) {
  if (over_) return link->close();
  for (const auto& frame : backlog_) link->send(frame);
  links_[static_cast<size_t>(rank)] = std::move(link);
  const auto num_links =
      std::count_if(links_.begin(), links_.end(), [](const auto& l) { return l != nullptr; });
  if (num_links == std::ssize(links_)) backlog_.clear();
  log::debug("rank {} has dialled", rank);
  const std::lock_guard lock(mutex_);
  view_.num_links = static_cast<int>(num_links);
}

void Engine::tick() {
  handle(TickEvent{});
  timer_.expires_after(kTickInterval);
  timer_.async_wait([this](const boost::system::error_code& error) {
    if (!error) tick();
  });
}

void Engine::handle(Event event) {
  std::vector<Action> actions;
  coordinator_.handle(std::move(event), now(), actions);
  for (Action& action : actions) {
    std::visit([this](auto& each) { perform(each); }, action);
  }
  CoordinatorStats stats = coordinator_.stats(now());
  const std::lock_guard lock(mutex_);
  view_.stats = std::move(stats);
}

void Engine::perform(SendAll& action) {
  bool complete = true;
  for (const auto& link : links_) {
    if (link != nullptr) link->send(action.frame);
    complete &= link != nullptr;
  }
  if (!complete && !over_) backlog_.push_back(action.frame);
}

void Engine::perform(Emit& action) {
  const auto found = callbacks_.find(action.emission.id);
  if (found == callbacks_.end()) return;
  found->second(action.emission);
  if (action.emission.finish != FinishReason::kNone) callbacks_.erase(found);
}

void Engine::perform(BecameReady& action) {
  const std::lock_guard lock(mutex_);
  view_.ready = std::move(action);
  changed_.notify_all();
}

void Engine::perform(Finished& action) {
  CHECK(!over_, "{}", action.message);
  over_ = true;
  for (const auto& link : links_) {
    if (link != nullptr) link->close();
  }
  bool lost = false;
  {
    const std::lock_guard lock(mutex_);
    lost = view_.ready.has_value() && !end_expected_ && action.exit_code != ExitCode::kOk;
    view_.finished = action;
    view_.stats.healthy = false;
  }
  changed_.notify_all();
  if (lost) on_lost_(action);
}

Engine::View Engine::view() const {
  const std::lock_guard lock(mutex_);
  return view_;
}

CoordinatorStats Engine::stats() const {
  const std::lock_guard lock(mutex_);
  return view_.stats;
}

bool Engine::wait(std::chrono::milliseconds limit, bool finished_only) const {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, limit,
      [&] { return view_.finished.has_value() || (!finished_only && view_.ready.has_value()); });
}

int32_t Engine::max_model_len() const {
  const int32_t configured = config_.engine.max_model_len;
  const int64_t longest = configured > 0 ? configured : checkpoint_->config().max_position;
  const int64_t room = int64_t{ready_.num_blocks} * config_.engine.block_size;
  return static_cast<int32_t>(std::min(longest, room));
}

}  // namespace millrace
