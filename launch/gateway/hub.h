// What the connections of one server share: the served model, whether calls are taken, how many
// are open, and the gate between the engine's thread and ours. Thread-safe.
#pragma once

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

  // False when there are too many connections, or after refuse_connections().
  bool add(const std::shared_ptr<Connection>& connection);
  void remove(const Connection* connection);
  void refuse_connections();
  void for_each_connection(const std::function<void(const std::shared_ptr<Connection>&)>& f);

  const ServerConfig config;
  const KeyRing keys;
  Metrics metrics;
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
  std::unordered_map<const Connection*, std::weak_ptr<Connection>> connections_;
};

}  // namespace millrace
