// The HTTP server: routes, streams, drain. Its own I/O threads; talks to the engine through
// EngineApi and to JSON through launch/api.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "launch/api/model_context.h"
#include "launch/cluster/engine_api.h"

namespace millrace {

struct ServerConfig {
  std::string host = "127.0.0.1";
  uint16_t port = 8000;  // 0: any free one, logged
  int64_t shutdown_timeout_s = 30;
};

class Server {
 public:
  // Binds at once: throws Error(kAddress) when the port is in use.
  explicit Server(const ServerConfig& config);
  ~Server();
  uint16_t port() const;
  // Serves until stop(): before `engine` is set every route but /live answers 503 "loading".
  void set_engine(EngineApi& engine, ModelContext model);
  // Starts the I/O threads.
  void start();
  // Drain: /health 503, new requests 503; running ones finish up to the timeout; then closes.
  void drain_and_stop();
  // The replica was lost: open streams have got their error; refuse everything from now on.
  void fail(const Status& status);

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace millrace
