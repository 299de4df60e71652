// An engine that says what a test tells it to, or counts: for the rooms above EngineApi.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "launch/api/engine_api.h"

namespace millrace {

class FakeEngine : public EngineApi {
 public:
  // What happens to each request, on the submitter's thread; nothing: the test emits.
  std::function<void(FakeEngine&, RequestId, const Request&)> on_submit;

  RequestId submit(Request request, EmissionCallback callback) override {
    RequestId id = 0;
    {
      const std::lock_guard lock(mutex_);
      id = next_id_++;
      requests_[id] = request;
      callbacks_[id] = std::move(callback);
      ++num_submitted_;
      max_open_ = std::max(max_open_, callbacks_.size());
    }
    changed_.notify_all();
    if (on_submit) on_submit(*this, id, request);
    return id;
  }
  void cancel(RequestId id) override {
    {
      const std::lock_guard lock(mutex_);
      cancelled_.push_back(id);
      callbacks_.erase(id);
    }
    changed_.notify_all();
  }
  CoordinatorStats stats() const override {
    const std::lock_guard lock(mutex_);
    return stats_;
  }
  void set_stats(const CoordinatorStats& stats) {
    const std::lock_guard lock(mutex_);
    stats_ = stats;
  }
  bool healthy() const override { return healthy_; }

  void emit(RequestId id, const std::string& text, FinishReason finish = FinishReason::kNone,
      const Status& status = {}) {
    Emission emission;
    emission.id = id;
    for (const char c : text) {
      const int32_t token = static_cast<unsigned char>(c);
      emission.tokens.push_back({token, -0.25f, {{token, -0.25f}}});
    }
    emission.finish = finish;
    emission.status = status;
    emit(emission);
  }
  void emit(const Emission& emission) {
    EmissionCallback callback;
    {
      const std::lock_guard lock(mutex_);
      const auto found = callbacks_.find(emission.id);
      if (found == callbacks_.end()) return;
      callback = found->second;
      if (emission.finish != FinishReason::kNone) callbacks_.erase(found);
    }
    callback(emission);
  }

  // These wait until it is so; the test's own time limit ends them otherwise.
  void wait_submitted(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return num_submitted_ >= count; });
  }
  void wait_cancelled(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return cancelled_.size() >= count; });
  }
  Request request(RequestId id) const {
    const std::lock_guard lock(mutex_);
    return requests_.at(id);
  }
  std::vector<RequestId> cancelled() const {
    const std::lock_guard lock(mutex_);
    return cancelled_;
  }
  size_t num_submitted() const {
    const std::lock_guard lock(mutex_);
    return num_submitted_;
  }
  size_t max_open() const {
    const std::lock_guard lock(mutex_);
    return max_open_;
  }
  void set_healthy(bool healthy) { healthy_ = healthy; }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<RequestId, Request> requests_;
  std::map<RequestId, EmissionCallback> callbacks_;
  std::vector<RequestId> cancelled_;
  CoordinatorStats stats_;
  RequestId next_id_ = 1;
  size_t num_submitted_ = 0;
  size_t max_open_ = 0;
  std::atomic<bool> healthy_{true};
};

}  // namespace millrace
