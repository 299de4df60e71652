// Emissions on their way from the engine's thread to the one that asked. Shared with the callbacks,
// which may outlive the question. Thread-safe.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "launch/api/engine_api.h"

namespace millrace {

class Mailbox : public std::enable_shared_from_this<Mailbox> {
 public:
  struct Mail {
    uint64_t call;
    size_t choice;
    Emission emission;
  };

  // What the engine calls for one choice of the call that the asker numbers `call`.
  EmissionCallback slot(uint64_t call, size_t choice) {
    return [self = shared_from_this(), call, choice](const Emission& emission) {
      {
        const std::lock_guard lock(self->mutex_);
        self->mail_.push_back({call, choice, emission});
      }
      self->arrived_.notify_one();
    };
  }
  // All that came; waits for the first up to `limit`, then gives none.
  std::vector<Mail> take(std::chrono::milliseconds limit) {
    std::unique_lock lock(mutex_);
    arrived_.wait_for(lock, limit, [this] { return !mail_.empty(); });
    return std::exchange(mail_, {});
  }

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<Mail> mail_;
};

}  // namespace millrace
