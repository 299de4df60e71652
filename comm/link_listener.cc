#include <fmt/format.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <list>

#include "comm/handshake.h"
#include "comm/tcp_socket.h"
#include "comm/tcp_worker_link.h"
#include "engine/base/log.h"
#include "engine/base/status.h"

namespace millrace {

namespace {

using boost::asio::ip::tcp;
using ErrorCodeType = boost::system::error_code;

constexpr auto kSilenceLimit = std::chrono::seconds(10);
constexpr auto kAcceptRetry = std::chrono::milliseconds(100);
constexpr size_t kMaxStrangers = 64;  // besides one pending connection per rank

// A connection that has not proved the key yet.
struct Stranger {
  explicit Stranger(tcp::socket accepted)
      : socket(std::move(accepted)), deadline(socket.get_executor()) {}

  tcp::socket socket;
  boost::asio::steady_timer deadline;
  std::string name;
  handshake::Nonce coordinator_nonce{};
  handshake::Challenge challenge{};
  handshake::Answer answer{};
  handshake::Mac proof{};
  bool dropped = false;
};
using StrangerPtr = std::shared_ptr<Stranger>;

}  // namespace

struct LinkListener::Impl : std::enable_shared_from_this<Impl> {
  Impl(boost::asio::io_context& io_context, const SessionKey& session_key, int num_ranks,
      LinkEvents link_events, OnLink link_callback)
      : key(session_key),
        seen(static_cast<size_t>(num_ranks)),
        events(std::make_shared<const LinkEvents>(std::move(link_events))),
        on_link(std::move(link_callback)),
        acceptor(io_context),
        retry(io_context) {}

  void listen(const std::string& address) {
    try {
      const tcp::endpoint endpoint(boost::asio::ip::make_address(address), 0);
      acceptor.open(endpoint.protocol());
      acceptor.bind(endpoint);
      acceptor.listen();
      port = acceptor.local_endpoint().port();
    } catch (const boost::system::system_error& error) {
      throw Error(ExitCode::kAddress,
          "cannot listen for workers on {}: {}; name an address of this host", address,
          error.code().message());
    }
  }

  void accept() {
    acceptor.async_accept([self = shared_from_this()](ErrorCodeType error, tcp::socket socket) {
      if (self->stopped) return;
      if (error) return self->accept_later(error);
      self->greet(std::move(socket));
      self->accept();
    });
  }

  // Out of descriptors, say: the next one may be free soon.
  void accept_later(ErrorCodeType error) {
    log::warning("cannot accept a worker's connection: {}", error.message());
    retry.expires_after(kAcceptRetry);
    retry.async_wait([self = shared_from_this()](ErrorCodeType) {
      if (!self->stopped) self->accept();
    });
  }

  void greet(tcp::socket socket) {
    // The oldest goes: a worker answers within a round trip, so the oldest is no worker.
    if (strangers.size() >= kMaxStrangers + seen.size()) {
      drop(strangers.front(), "too many connections without a proof");
    }
    auto stranger = std::make_shared<Stranger>(std::move(socket));
    strangers.push_back(stranger);
    ErrorCodeType ignored;
    const tcp::endpoint peer = stranger->socket.remote_endpoint(ignored);
    stranger->name = fmt::format("{}:{}", peer.address().to_string(), peer.port());
    tune_tcp_socket(stranger->socket.native_handle());
    stranger->coordinator_nonce = handshake::make_nonce();
    stranger->challenge = handshake::make_challenge(stranger->coordinator_nonce);

    stranger->deadline.expires_after(kSilenceLimit);
    stranger->deadline.async_wait([self = shared_from_this(), stranger](ErrorCodeType error) {
      if (!error) self->drop(stranger, "no proof within 10 seconds");
    });
    boost::asio::async_write(stranger->socket, boost::asio::buffer(stranger->challenge),
        [self = shared_from_this(), stranger](ErrorCodeType error, size_t) {
          if (error) return self->drop(stranger, error.message());
          self->read_answer(stranger);
        });
  }

  void read_answer(const StrangerPtr& stranger) {
    if (stranger->dropped) return;
    // Stops at the first byte that cannot be a worker's.
    const auto wanted = [stranger](ErrorCodeType error, size_t received) -> size_t {
      const std::span<const uint8_t> bytes(stranger->answer);
      if (error || !handshake::prefix_fits(bytes.first(received))) return 0;
      return bytes.size() - received;
    };
    boost::asio::async_read(stranger->socket, boost::asio::buffer(stranger->answer), wanted,
        [self = shared_from_this(), stranger](ErrorCodeType error, size_t received) {
          if (error) return self->drop(stranger, error.message());
          if (received < handshake::kAnswerBytes) return self->drop(stranger, "not a worker");
          self->judge(stranger);
        });
  }

  void judge(const StrangerPtr& stranger) {
    if (stranger->dropped) return;
    int32_t rank = -1;
    handshake::Nonce worker_nonce;
    if (!handshake::read_answer(
            key, stranger->coordinator_nonce, stranger->answer, &rank, &worker_nonce)) {
      return drop(stranger, "it does not hold the session key");
    }
    if (rank < 0 || static_cast<size_t>(rank) >= seen.size()) {
      return drop(stranger, fmt::format("there is no rank {}", rank));
    }
    if (seen[static_cast<size_t>(rank)]) {
      return drop(stranger, fmt::format("rank {} is connected already", rank));
    }
    seen[static_cast<size_t>(rank)] = true;
    stranger->proof = handshake::make_proof(key, stranger->coordinator_nonce, worker_nonce, rank);
    boost::asio::async_write(stranger->socket, boost::asio::buffer(stranger->proof),
        [self = shared_from_this(), stranger, rank](ErrorCodeType error, size_t) {
          if (error || stranger->dropped) {
            self->seen[static_cast<size_t>(rank)] = false;  // it may dial again
            return self->drop(stranger, error ? error.message() : "");
          }
          self->welcome(stranger, rank);
        });
  }

  void welcome(const StrangerPtr& stranger, int rank) {
    stranger->deadline.cancel();
    stranger->dropped = true;  // no stranger any more
    strangers.remove(stranger);
    on_link(rank, make_tcp_worker_link(std::move(stranger->socket), rank, events));
  }

  void drop(const StrangerPtr& stranger, const std::string& reason) {
    if (stranger->dropped) return;
    stranger->dropped = true;
    if (!stopped) log::warning("dropped a connection from {}: {}", stranger->name, reason);
    ErrorCodeType ignored;
    stranger->deadline.cancel();
    stranger->socket.close(ignored);
    strangers.remove(StrangerPtr(stranger));  // the argument may be an element
  }

  void stop() {
    if (stopped) return;
    stopped = true;
    ErrorCodeType ignored;
    acceptor.close(ignored);
    retry.cancel();
    while (!strangers.empty()) drop(strangers.front(), "");
  }

  const SessionKey key;
  std::vector<bool> seen;  // ranks that have proved the key
  std::shared_ptr<const LinkEvents> events;
  OnLink on_link;
  tcp::acceptor acceptor;
  boost::asio::steady_timer retry;
  std::list<StrangerPtr> strangers;  // oldest first
  uint16_t port = 0;
  bool stopped = false;
};

LinkListener::LinkListener(boost::asio::io_context& io, const std::string& address,
    const SessionKey& key, int num_ranks, LinkEvents events, OnLink on_link)
    : impl_(std::make_shared<Impl>(io, key, num_ranks, std::move(events), std::move(on_link))) {
  impl_->listen(address);
  impl_->accept();
}

LinkListener::~LinkListener() { stop(); }

uint16_t LinkListener::port() const { return impl_->port; }

void LinkListener::stop() { impl_->stop(); }

}  // namespace millrace
