// The HTTP server: routes, streams, drain. Its own I/O threads; talks to the engine through
// EngineApi and to JSON through launch/api. Called from the main thread; fail() from any.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "launch/api/engine_api.h"
#include "launch/api/model_context.h"

namespace millrace {

// What one connection may ask of us. Tests shorten the times.
struct HttpLimits {
  size_t head_bytes = 16 << 10;
  size_t head_fields = 100;
  size_t target_bytes = 8 << 10;
  size_t body_bytes = 32 << 20;
  size_t body_chunks = 65'536;
  size_t body_memory = 1 << 30;  // of the bodies of all connections until they are parsed
  size_t connections = 10'000;
  size_t connections_per_address = 1000;  // of an IPv6 client: per /64
  size_t open_calls = 4096;               // parsed or in the engine
  size_t calls_per_key = 256;             // of these, when there are keys
  size_t calls_per_minute = 0;            // begun with one key, as many at once; 0: no limit
  size_t stream_queue = 256 << 10;        // bytes a stream's reader may lag behind
  std::chrono::milliseconds head_time{10'000};
  std::chrono::milliseconds body_grace{10'000};   // then at least body_rate
  size_t body_rate = 1024;                        // bytes per second
  std::chrono::milliseconds idle_time{75'000};    // between requests of a connection
  std::chrono::milliseconds write_stall{30'000};  // and with more to write at least body_rate
  std::chrono::milliseconds queue_wait{60'000};   // of the next to run, then no more calls
};

struct ServerConfig {
  std::string host = "127.0.0.1";
  uint16_t port = 8000;  // 0: any free one, see Server::port()
  int64_t shutdown_timeout_s = 30;
  int io_threads = 1;
  int text_threads = 2;      // parse, template, tokenize
  std::string api_key;       // one key; neither this nor a file: everybody may ask
  std::string api_key_file;  // more, one a line
  std::string ssl_certfile;  // PEM, with the key: HTTPS
  std::string ssl_keyfile;
  std::vector<std::string> allowed_hosts;  // OriginGuard
  std::vector<std::string> cors_origins;
  HttpLimits limits;
};

class Server {
 public:
  // Binds at once: throws Error(kAddress) when the port is in use, kInput for a bad file of keys or
  // of a certificate.
  explicit Server(const ServerConfig& config);
  // Stops without waiting for open calls; they are cancelled.
  ~Server();
  uint16_t port() const;
  // Serves until drain_and_stop(): before `engine` is set every route but /live answers 503
  // "loading". The engine must outlive the server.
  void set_engine(EngineApi& engine, ModelContext model);
  // Starts the I/O threads.
  void start();
  // Drain: /health 503, new requests 503; running ones finish up to the timeout, those left get an
  // error; then closes. Blocks.
  void drain_and_stop();
  // The replica was lost: open streams have got their error; refuse everything from now on.
  void fail(const Status& status);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace millrace
