#include "engine/worker/session.h"

#include <unistd.h>

#include <chrono>

#include "engine/base/log.h"
#include "engine/base/status.h"

namespace millrace {

namespace {

constexpr auto kHeartbeatInterval = std::chrono::seconds(1);
// How long the compute thread may take to notice that the coordinator is gone.
constexpr auto kLeaveTime = std::chrono::seconds(1);

}  // namespace

WorkerSession::WorkerSession(int rank, CoordinatorLink& link, bool own_process)
    : rank_(rank), link_(link), own_process_(own_process) {
  reader_ = std::thread([this] { read_frames(); });
  heart_ = std::thread([this] { beat(); });
}

WorkerSession::~WorkerSession() {
  {
    const std::lock_guard lock(mutex_);
    done_ = true;
  }
  changed_.notify_all();
  link_.shutdown();
  reader_.join();
  heart_.join();
}

std::optional<WorkerSession::Frame> WorkerSession::receive() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !inbox_.empty() || link_ended_; });
  if (inbox_.empty()) return std::nullopt;
  Frame frame = std::move(inbox_.front());
  inbox_.pop_front();
  return frame;
}

void WorkerSession::send(FrameType type, const Bytes& body) {
  // A false return means the link ended, which the reader sees too.
  link_.send(make_frame(type, epoch_, body));
}

void WorkerSession::read_frames() {
  Bytes bytes;
  while (link_.receive(&bytes)) {
    FrameHeader header;
    if (!decode(std::span<const uint8_t>(bytes), &header)) {
      log::error("rank {}: the coordinator sent a frame that is not ours; leaving", rank_);
      break;
    }
    uint32_t fresh = 0;
    epoch_.compare_exchange_strong(fresh, header.epoch);
    if (header.epoch != epoch_) continue;
    const std::lock_guard lock(mutex_);
    inbox_.push_back({header.type, std::move(bytes)});
    changed_.notify_all();
  }
  std::unique_lock lock(mutex_);
  link_ended_ = true;
  changed_.notify_all();
  if (!own_process_) return;
  if (!changed_.wait_for(lock, kLeaveTime, [this] { return done_; })) {
    // Blocked in a collective whose peer is gone: nothing in this process can end that call.
    _exit(static_cast<int>(ExitCode::kOk));
  }
}

void WorkerSession::beat() {
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, kHeartbeatInterval, [this] { return done_ || link_ended_; })) {
    if (epoch_ == 0) continue;
    const Heartbeat heartbeat{rank_, steps_done_.load(), progress_.load()};
    lock.unlock();
    send(FrameType::kHeartbeat, encode(heartbeat));
    lock.lock();
  }
}

}  // namespace millrace
