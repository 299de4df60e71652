#include "launch/gateway/hub.h"

#include <vector>

namespace millrace {

std::optional<Hub::Unavailable> Hub::unavailable() const {
  std::shared_ptr<const Serving> serving;
  {
    const std::lock_guard lock(mutex_);
    if (failed_) return Unavailable{failed_->message, "unavailable"};
    if (draining_) return Unavailable{"The server is shutting down.", "draining"};
    if (serving_ == nullptr) return Unavailable{"The model is still loading.", "loading"};
    serving = serving_;
  }
  // Outside the lock: the engine has locks of its own and calls back into this room.
  if (!serving->engine->healthy()) return Unavailable{"The engine does not answer.", "unavailable"};
  return std::nullopt;
}

std::shared_ptr<const Serving> Hub::serving() const {
  const std::lock_guard lock(mutex_);
  return serving_;
}

void Hub::set_serving(EngineApi& engine, ModelContext model) {
  const std::lock_guard lock(mutex_);
  serving_ = std::make_shared<const Serving>(Serving{&engine, std::move(model)});
}

void Hub::set_failed(const Status& status) {
  const std::lock_guard lock(mutex_);
  failed_ = status;
}

void Hub::set_draining() {
  const std::lock_guard lock(mutex_);
  draining_ = true;
}

bool Hub::draining() const {
  const std::lock_guard lock(mutex_);
  return draining_;
}

Hub::Ticket Hub::begin_call() {
  {
    const std::lock_guard lock(mutex_);
    if (open_calls_ >= config.limits.open_calls) return nullptr;
    ++open_calls_;
  }
  // Outside the lock: its end, of which the constructor may make use, takes it too.
  return Ticket(this, [](Hub* hub) { hub->end_call(); });
}

size_t Hub::open_calls() const {
  const std::lock_guard lock(mutex_);
  return open_calls_;
}

size_t Hub::num_connections() const {
  const std::lock_guard lock(mutex_);
  return connections_.size();
}

void Hub::end_call() {
  const std::lock_guard lock(mutex_);
  if (--open_calls_ == 0) idle_.notify_all();
}

bool Hub::wait_until_idle(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  return idle_.wait_for(lock, timeout, [&] { return open_calls_ == 0; });
}

bool Hub::add(const std::shared_ptr<Connection>& connection) {
  const std::lock_guard lock(mutex_);
  if (refusing_ || connections_.size() >= config.limits.connections) return false;
  connections_.emplace(connection.get(), connection);
  return true;
}

void Hub::remove(const Connection* connection) {
  const std::lock_guard lock(mutex_);
  connections_.erase(connection);
}

void Hub::refuse_connections() {
  const std::lock_guard lock(mutex_);
  refusing_ = true;
}

void Hub::for_each_connection(const std::function<void(const std::shared_ptr<Connection>&)>& f) {
  std::vector<std::shared_ptr<Connection>> alive;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [key, weak] : connections_)
      if (auto connection = weak.lock()) alive.push_back(std::move(connection));
  }
  for (const auto& connection : alive) f(connection);
}

}  // namespace millrace
