// The worker's end of the control plane: blocking calls, for the thread that owns the
// worker's loop.
#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/connect_pair.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <chrono>
#include <mutex>
#include <thread>

#include "comm/handshake.h"
#include "comm/socket_links.h"
#include "engine/base/log.h"
#include "engine/base/status.h"
#include "engine/protocol/messages.h"

namespace millrace {

namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kConnectLimit{2'000};  // of one address: another one may be the right one
constexpr milliseconds kHandshakeLimit{10'000};
constexpr milliseconds kRetryPause{100};

class SocketLink final : public CoordinatorLink {
 public:
  SocketLink() = default;
  // Connected to the other end, which is trusted.
  explicit SocketLink(Stream::socket* other_end) {
    asio::local::stream_protocol::socket mine(io_), other(other_end->get_executor());
    asio::local::connect_pair(mine, other);
    socket_ = std::move(mine);
    *other_end = std::move(other);
  }

  // Empty when the coordinator at `place` has proved that it holds the key; else what went wrong.
  std::string dial(
      const tcp::endpoint& place, const SessionKey& key, int rank, milliseconds limit) {
    const milliseconds patience = std::min(limit, kHandshakeLimit);
    const auto read = [&](auto& message) {
      return within(patience,
          [&](auto&& done) { asio::async_read(socket_, asio::buffer(message), std::move(done)); });
    };
    error_code error = within(std::min(limit, kConnectLimit),
        [&](auto&& done) { socket_.async_connect(Stream::endpoint(place), std::move(done)); });
    if (error) return reason(error);
    tune_tcp_socket(socket_.native_handle());
    handshake::Challenge challenge;
    if ((error = read(challenge))) return reason(error);
    handshake::Nonce coordinator_nonce;
    if (!handshake::read_challenge(challenge, &coordinator_nonce)) {
      return "it is no Millrace coordinator of this version";
    }
    const handshake::Nonce worker_nonce = handshake::make_nonce();
    const auto answer = handshake::make_answer(key, coordinator_nonce, worker_nonce, rank);
    asio::write(socket_, asio::buffer(answer), error);  // fits into the socket's buffer
    if (error) return reason(error);
    handshake::Mac proof;
    if ((error = read(proof))) {
      return error == asio::error::eof ? "it refused this rank or its session key" : reason(error);
    }
    if (!handshake::equal(
            proof, handshake::make_proof(key, coordinator_nonce, worker_nonce, rank))) {
      return "it does not hold the session key";
    }
    socket_.native_non_blocking(false);
    return "";
  }

  bool receive(Bytes* frame) override {
    error_code error;
    frame->resize(kFrameHeaderBytes);
    if (asio::read(socket_, asio::buffer(*frame), error); error) return false;
    FrameHeader header;
    if (!decode(*frame, &header)) {
      log::error("the coordinator sent a malformed frame; the link ends");
      shutdown();
      return false;
    }
    frame->resize(kFrameHeaderBytes + header.length);
    asio::read(socket_, asio::buffer(*frame) + kFrameHeaderBytes, error);
    return !error;
  }

  bool send(const Bytes& frame) override {
    const std::lock_guard lock(send_mutex_);
    error_code error;
    asio::write(socket_, asio::buffer(frame), error);
    return !error;
  }

  // Not close(): the descriptor stays ours until both threads are done with it.
  void shutdown() override {
    error_code ignored;
    socket_.shutdown(Stream::socket::shutdown_both, ignored);
  }

 private:
  // The error of an operation that `start` begins with the handler it is given.
  template <typename Start>
  error_code within(milliseconds limit, const Start& start) {
    error_code result = asio::error::timed_out;
    start([&](error_code error, auto&&...) { result = error; });
    io_.restart();
    io_.run_for(limit);
    if (io_.stopped()) return result;
    socket_.close();
    io_.run();  // the operation ends as cancelled
    return asio::error::timed_out;
  }

  static std::string reason(error_code error) {
    if (error == asio::error::eof) return "it closed the connection";
    return error == asio::error::timed_out ? "no answer in time" : error.message();
  }

  asio::io_context io_;
  Stream::socket socket_{io_};
  std::mutex send_mutex_;  // one whole frame after the other
};

// One try at one address: a link, or the reason why not.
std::unique_ptr<CoordinatorLink> dial_once(const std::string& address, uint16_t port,
    const SessionKey& key, int rank, milliseconds limit, std::string* reason) {
  asio::io_context io;
  error_code error;
  const auto places = tcp::resolver(io).resolve(address, std::to_string(port), error);
  if (error) *reason = error.message();
  for (const auto& place : places) {
    auto link = std::make_unique<SocketLink>();
    *reason = link->dial(place, key, rank, limit);
    if (reason->empty()) return link;
  }
  return nullptr;
}

}  // namespace

InProcessLink make_in_process_link(asio::io_context& io, int rank, LinkEvents events) {
  Stream::socket socket(io);
  auto worker_end = std::make_unique<SocketLink>(&socket);
  return {
      make_worker_link(std::move(socket), rank, std::make_shared<LinkEvents>(std::move(events))),
      std::move(worker_end)};
}

std::unique_ptr<CoordinatorLink> dial_coordinator(const std::vector<std::string>& addresses,
    uint16_t port, const SessionKey& key, int rank, int timeout_s) {
  const auto deadline = Clock::now() + std::chrono::seconds(timeout_s);
  std::string reasons;
  for (;;) {
    reasons.clear();
    for (const std::string& address : addresses) {
      const auto left = std::chrono::duration_cast<milliseconds>(deadline - Clock::now());
      std::string reason;
      if (auto link =
              dial_once(address, port, key, rank, std::max(left, milliseconds(1)), &reason)) {
        return link;
      }
      reasons += fmt::format("{}{}:{}: {}", reasons.empty() ? "" : "; ", address, port, reason);
    }
    if (Clock::now() + kRetryPause >= deadline) break;
    std::this_thread::sleep_for(kRetryPause);
  }
  throw Error(ExitCode::kAddress,
      "rank {} cannot reach the coordinator within {} s ({}); check that its host accepts "
      "connections from this one",
      rank, timeout_s, reasons.empty() ? "no address given" : reasons);
}

}  // namespace millrace
