#include "launch/gateway/server.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <optional>
#include <thread>
#include <vector>

#include "engine/base/log.h"
#include "launch/gateway/connection.h"

namespace millrace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

namespace {

constexpr std::chrono::milliseconds kAcceptRetry{100};
constexpr std::chrono::seconds kLastWords{2};  // for the errors of calls that a drain cut off

// Bytes that the kernel may hold for a client that does not read. Its own choice grows to
// megabytes.
constexpr int kSendBuffer = 256 << 10;
constexpr rlim_t kOtherDescriptors = 256;

// Every connection is a descriptor, and most shells allow 1,024.
void allow_descriptors(size_t connections) {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  const rlim_t wanted = connections + kOtherDescriptors;
  if (limit.rlim_cur >= wanted) return;
  limit.rlim_cur = std::min(wanted, limit.rlim_max);
  setrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur < wanted)
    log::warning("{} files may be open here (ulimit -n), which is less than {} connections need",
        limit.rlim_cur, connections);
}

}  // namespace

// The hub outlives the I/O context: connections end with it and sign off at the hub.
struct Server::Impl {
  explicit Impl(const ServerConfig& config)
      : hub(config),
        io(config.io_threads),
        acceptor(asio::make_strand(io)),
        accept_retry(acceptor.get_executor()),
        text_pool(config.text_threads) {}

  void listen();
  void accept();
  void stop();

  Hub hub;
  asio::io_context io;
  tcp::acceptor acceptor;  // and its timer: used on a strand of their own
  asio::steady_timer accept_retry;
  uint16_t port = 0;
  asio::thread_pool text_pool;
  std::vector<std::thread> threads;
  std::optional<asio::executor_work_guard<asio::io_context::executor_type>> work;
};

void Server::Impl::listen() {
  const ServerConfig& config = hub.config;
  allow_descriptors(config.limits.connections);
  error_code error;
  const auto found = tcp::resolver(io).resolve(
      config.host, std::to_string(config.port), tcp::resolver::passive, error);
  if (error || found.empty())
    throw Error(ExitCode::kAddress,
        "The address \"{}\" is not known here ({}). Give --host an address of "
        "this machine, 127.0.0.1 or 0.0.0.0.",
        config.host, error.message());
  const tcp::endpoint endpoint = *found.begin();
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error == asio::error::address_in_use)
    throw Error(ExitCode::kAddress,
        "Port {} on {} is in use. End the program that has it, or choose another "
        "with --port.",
        config.port, config.host);
  if (error)
    throw Error(ExitCode::kAddress, "Cannot listen on {} port {}: {}.", config.host, config.port,
        error.message());
  port = acceptor.local_endpoint().port();
}

void Server::Impl::accept() {
  acceptor.async_accept(asio::make_strand(io), [this](error_code error, Stream::Socket socket) {
    if (error == asio::error::operation_aborted || !acceptor.is_open()) return;
    if (error) {
      // Out of descriptors, most likely: trying again at once would only spin.
      log::warning("cannot accept a connection: {}", error.message());
      accept_retry.expires_after(kAcceptRetry);
      accept_retry.async_wait([this](error_code stopped) {
        if (!stopped) accept();
      });
      return;
    }
    const tcp::endpoint client = socket.remote_endpoint(error);  // fails if it has gone again
    if (!error) socket.set_option(tcp::socket::send_buffer_size(kSendBuffer), error);
    if (!error) socket.set_option(tcp::no_delay(true), error);
    const auto connection = std::make_shared<Connection>(std::move(socket), hub, text_pool);
    if (!error && hub.add(connection, client.address())) connection->start();
    accept();
  });
}

void Server::Impl::stop() {
  if (!work) return;
  hub.refuse_connections();
  asio::post(acceptor.get_executor(), [this] {
    error_code ignored;
    acceptor.close(ignored);
    accept_retry.cancel();
  });
  text_pool.stop();
  text_pool.join();
  hub.for_each_connection([](const auto& connection) { connection->shut(); });
  {
    const std::lock_guard lock(hub.gate->mutex);
    hub.gate->open = false;
  }
  // With every socket closed the threads run out of work and end by themselves.
  work.reset();
  for (std::thread& thread : threads) thread.join();
  threads.clear();
}

Server::Server(const ServerConfig& config) : impl_(std::make_unique<Impl>(config)) {
  impl_->listen();
}

Server::~Server() { impl_->stop(); }

uint16_t Server::port() const { return impl_->port; }

void Server::set_engine(EngineApi& engine, ModelContext model) {
  impl_->hub.set_serving(engine, std::move(model));
}

void Server::start() {
  impl_->work.emplace(impl_->io.get_executor());
  impl_->accept();
  for (int i = 0; i < impl_->hub.config.io_threads; ++i)
    impl_->threads.emplace_back([this] {
      for (;;) {
        try {
          impl_->io.run();
          return;
        } catch (const std::exception& error) {
          // One connection's trouble (out of memory, most likely) must not end the others.
          log::error("an error in the gateway: {}", error.what());
        }
      }
    });
}

void Server::drain_and_stop() {
  Hub& hub = impl_->hub;
  hub.set_draining();
  if (!hub.wait_until_idle(std::chrono::seconds(hub.config.shutdown_timeout_s))) {
    log::warning(
        "some requests did not end within {} s: they get an error", hub.config.shutdown_timeout_s);
    const Status status{ErrorCode::kUnavailable, "The server is shutting down.", ""};
    hub.for_each_connection([&](const auto& connection) { connection->end_call(status); });
    hub.wait_until_idle(kLastWords);
  }
  impl_->stop();
}

void Server::fail(const Status& status) { impl_->hub.set_failed(status); }

}  // namespace millrace
