// The worker's side of the control plane: a reader thread fills an inbox, a heartbeat thread tells
// that the rank lives and moves. The compute thread takes frames and sends results.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>

#include "comm/link.h"
#include "engine/protocol/messages.h"

namespace millrace {

class WorkerSession {
 public:
  struct Frame {
    FrameType type;
    Bytes bytes;  // the whole frame
    std::span<const uint8_t> body() const {
      return std::span<const uint8_t>(bytes).subspan(kFrameHeaderBytes);
    }
  };

  WorkerSession(int rank, CoordinatorLink& link, bool own_process);
  // Ends the link and joins the threads.
  ~WorkerSession();

  // The next frame; nothing when the coordinator is gone. Blocks; compute thread.
  std::optional<Frame> receive();
  void send(FrameType type, const Bytes& body);

  // Ticks with every tensor loaded and every layer run.
  std::atomic<uint64_t>& progress() { return progress_; }
  void step_done() { steps_done_.fetch_add(1, std::memory_order_relaxed); }

 private:
  void read_frames();
  void beat();

  const int rank_;
  CoordinatorLink& link_;
  const bool own_process_;
  std::atomic<uint64_t> progress_{0};
  std::atomic<uint64_t> steps_done_{0};
  std::atomic<uint32_t> epoch_{0};  // of the first frame: the replica life this worker serves
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Frame> inbox_;  // guarded by mutex_
  bool link_ended_ = false;  // guarded by mutex_
  bool done_ = false;        // guarded by mutex_: the compute thread has left
  std::thread reader_;
  std::thread heart_;
};

}  // namespace millrace
