#include "launch/gateway/hub.h"

#include <algorithm>
#include <cmath>

#include "launch/gateway/stream.h"

namespace millrace {
namespace {

// What one client cannot choose freely: its IPv4 address, or the first half of an IPv6 address.
uint64_t network_of(const boost::asio::ip::address& address) {
  if (address.is_v4()) return address.to_v4().to_uint();
  const auto v6 = address.to_v6();
  if (v6.is_v4_mapped()) return make_address_v4(boost::asio::ip::v4_mapped, v6).to_uint();
  const auto bytes = v6.to_bytes();
  uint64_t network = 0;
  for (size_t i = 0; i < sizeof(network); ++i) network = network << 8 | bytes[i];
  return network;
}

}  // namespace

Hub::Hub(const ServerConfig& server_config)
    : config(server_config),
      keys(config.api_key, config.api_key_file),
      origins(config.host, config.allowed_hosts, config.cors_origins),
      tls(make_tls(config.ssl_certfile, config.ssl_keyfile)),
      key_uses_(keys.size(), {.allowance = static_cast<double>(config.limits.calls_per_minute)}) {}

std::optional<Hub::Refusal> Hub::unavailable() const {
  std::shared_ptr<const Serving> serving;
  {
    const std::lock_guard lock(mutex_);
    if (failed_) return Refusal{503, failed_->message, "unavailable"};
    if (draining_) return Refusal{503, "The server is shutting down.", "draining"};
    if (serving_ == nullptr) return Refusal{503, "The model is still loading.", "loading"};
    serving = serving_;
  }
  // Outside the lock: the engine has locks of its own and calls back into this room.
  if (!serving->engine->healthy())
    return Refusal{503, "The engine does not answer.", "unavailable"};
  return std::nullopt;
}

std::optional<Hub::Refusal> Hub::overloaded() const {
  const auto waited = std::chrono::milliseconds(serving()->engine->stats().queue_wait);
  if (waited <= config.limits.queue_wait) return std::nullopt;
  return Refusal{503,
      fmt::format(
          "The queue is too long: its first request has waited {} s.", waited.count() / 1000),
      "overloaded"};
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

std::optional<Hub::Refusal> Hub::take_allowance(KeyUse& use) {
  if (use.open >= config.limits.calls_per_key)
    return Refusal{429,
        fmt::format("{} calls with this key are open: wait for one to end.", use.open),
        "rate_limit_exceeded", 1};
  const auto rate = static_cast<double>(config.limits.calls_per_minute);
  if (rate == 0) return std::nullopt;
  const auto now = std::chrono::steady_clock::now();
  const double minutes = std::chrono::duration<double, std::ratio<60>>(now - use.seen).count();
  use.seen = now;
  use.allowance = std::min(rate, use.allowance + minutes * rate);
  if (use.allowance < 1)
    return Refusal{429, fmt::format("This key may begin {} calls a minute.", rate),
        "rate_limit_exceeded", static_cast<int>(std::ceil((1 - use.allowance) / rate * 60))};
  use.allowance -= 1;
  return std::nullopt;
}

Hub::Ticket Hub::begin_call(std::optional<size_t> key, Refusal& why) {
  {
    const std::lock_guard lock(mutex_);
    if (open_calls_ >= config.limits.open_calls) {
      why = {503, "Too many requests are open.", "overloaded"};
      return nullptr;
    }
    if (key) {
      if (auto refusal = take_allowance(key_uses_[*key])) {
        why = *std::move(refusal);
        return nullptr;
      }
      ++key_uses_[*key].open;
    }
    ++open_calls_;
  }
  // Outside the lock: its end, of which the constructor may make use, takes it too.
  return Ticket(this, [key](Hub* hub) { hub->end_call(key); });
}

size_t Hub::open_calls() const {
  const std::lock_guard lock(mutex_);
  return open_calls_;
}

size_t Hub::num_connections() const {
  const std::lock_guard lock(mutex_);
  return connections_.size();
}

void Hub::end_call(std::optional<size_t> key) {
  const std::lock_guard lock(mutex_);
  if (key) --key_uses_[*key].open;
  if (--open_calls_ == 0) idle_.notify_all();
}

bool Hub::wait_until_idle(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  return idle_.wait_for(lock, timeout, [&] { return open_calls_ == 0; });
}

bool Hub::add(const std::shared_ptr<Connection>& connection, const boost::asio::ip::address& from) {
  const std::lock_guard lock(mutex_);
  if (refusing_ || connections_.size() >= config.limits.connections) return false;
  const uint64_t network = network_of(from);
  if (size_t& known = num_from_[network]; known < config.limits.connections_per_address) ++known;
  else return false;
  connections_.emplace(connection.get(), Known{connection, network});
  return true;
}

void Hub::remove(const Connection* connection) {
  const std::lock_guard lock(mutex_);
  const auto found = connections_.find(connection);
  if (found == connections_.end()) return;
  if (--num_from_[found->second.network] == 0) num_from_.erase(found->second.network);
  connections_.erase(found);
}

void Hub::refuse_connections() {
  const std::lock_guard lock(mutex_);
  refusing_ = true;
}

void Hub::for_each_connection(const std::function<void(const std::shared_ptr<Connection>&)>& f) {
  std::vector<std::shared_ptr<Connection>> alive;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [key, known] : connections_)
      if (auto connection = known.connection.lock()) alive.push_back(std::move(connection));
  }
  for (const auto& connection : alive) f(connection);
}

}  // namespace millrace
