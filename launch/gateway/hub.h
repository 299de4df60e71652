// What the connections of one server share: the served model, whether calls are taken, how many
// are open, and the gate between the engine's thread and ours. Thread-safe.
#pragma once

#include <atomic>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/ssl/context.hpp>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/base/status.h"
#include "launch/api/engine_api.h"
#include "launch/api/model_context.h"
#include "launch/gateway/keys.h"
#include "launch/gateway/metrics.h"
#include "launch/gateway/origin.h"
#include "launch/gateway/server.h"

namespace millrace {

class Connection;

struct Serving {
  EngineApi* engine;
  ModelContext model;
};

// The engine's thread passes emissions on only while this is open: closed before the I/O ends, it
// makes sure that none comes after.
struct EmissionGate {
  std::mutex mutex;
  bool open = true;
};

// What the body of one request takes of the memory for all, until this ends.
class BodyShare {
 public:
  explicit BodyShare(std::atomic<size_t>& in_use) : in_use_(in_use) {}
  ~BodyShare() { in_use_ -= size_; }
  BodyShare(const BodyShare&) = delete;
  // False when all bodies have `limit` bytes already.
  bool grow_to(size_t size, size_t limit) {
    if (in_use_ >= limit) return false;
    in_use_ += size - size_;
    size_ = size;
    return true;
  }

 private:
  std::atomic<size_t>& in_use_;
  size_t size_ = 0;
};

class Hub {
 public:
  explicit Hub(const ServerConfig& server_config);

  // An answer instead of what was asked for.
  struct Refusal {
    int status = 503;
    std::string message;
    std::string code;
    int retry_after_s = kRetryAfterS;
  };
  static constexpr int kRetryAfterS = 2;
  // Why nothing but /live and figures is answered now; nothing when all is well.
  std::optional<Refusal> unavailable() const;
  // Why no call is taken for the engine now.
  std::optional<Refusal> overloaded() const;
  std::shared_ptr<const Serving> serving() const;

  void set_serving(EngineApi& engine, ModelContext model);
  void set_failed(const Status& status);
  void set_draining();
  bool draining() const;

  // One open call; counted until it is let go, which must be before the hub ends.
  using Ticket = std::shared_ptr<Hub>;
  // Null, and why, when there are too many calls or too many with `key` (its number in `keys`).
  Ticket begin_call(std::optional<size_t> key, Refusal& why);
  size_t open_calls() const;
  size_t num_connections() const;
  // False when calls are still open after `timeout`.
  bool wait_until_idle(std::chrono::milliseconds timeout);

  // False when there are too many connections, in all or from there, or after
  // refuse_connections().
  bool add(const std::shared_ptr<Connection>& connection, const boost::asio::ip::address& from);
  void remove(const Connection* connection);
  void refuse_connections();
  void for_each_connection(const std::function<void(const std::shared_ptr<Connection>&)>& f);

  const ServerConfig config;
  const KeyRing keys;
  const OriginGuard origins;
  const std::unique_ptr<boost::asio::ssl::context> tls;  // null: plain HTTP
  Metrics metrics;
  std::atomic<size_t> body_bytes = 0;  // BodyShare
  const std::shared_ptr<EmissionGate> gate = std::make_shared<EmissionGate>();

 private:
  // What one key has open and may begin (a token bucket: Turner 1986).
  struct KeyUse {
    size_t open = 0;
    double allowance = 0;  // calls that may begin at `seen`
    std::chrono::steady_clock::time_point seen;
  };
  std::optional<Refusal> take_allowance(KeyUse& use);
  void end_call(std::optional<size_t> key);

  mutable std::mutex mutex_;
  std::condition_variable idle_;
  std::shared_ptr<const Serving> serving_;
  std::optional<Status> failed_;
  bool draining_ = false;
  bool refusing_ = false;
  size_t open_calls_ = 0;
  std::vector<KeyUse> key_uses_;  // by number
  struct Known {
    std::weak_ptr<Connection> connection;
    uint64_t network;  // that it comes from
  };
  std::unordered_map<const Connection*, Known> connections_;
  std::unordered_map<uint64_t, size_t> num_from_;  // connections by network
};

}  // namespace millrace
