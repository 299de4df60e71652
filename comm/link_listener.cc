#include <fmt/format.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <list>

#include "comm/handshake.h"
#include "comm/socket_links.h"
#include "engine/base/log.h"
#include "engine/base/status.h"

namespace millrace {

namespace {

namespace asio = boost::asio;
using asio::awaitable;
using asio::ip::tcp;
using boost::system::error_code;

constexpr auto kSilenceLimit = std::chrono::seconds(10);
constexpr auto kAcceptRetry = std::chrono::milliseconds(100);
constexpr size_t kMaxStrangers = 64;  // besides one pending connection per rank

// A connection that has not proved the key yet.
struct Stranger {
  explicit Stranger(tcp::socket accepted)
      : socket(std::move(accepted)), deadline(socket.get_executor()) {}

  tcp::socket socket;
  asio::steady_timer deadline;
  std::string name;
  bool dropped = false;
};
using StrangerPtr = std::shared_ptr<Stranger>;

}  // namespace

struct LinkListener::Impl : std::enable_shared_from_this<Impl> {
  Impl(asio::io_context& io_context, const SessionKey& session_key, int num_ranks,
      LinkEvents link_events, OnLink link_callback)
      : key(session_key),
        seen(static_cast<size_t>(num_ranks)),
        events(std::make_shared<const LinkEvents>(std::move(link_events))),
        on_link(std::move(link_callback)),
        acceptor(io_context),
        retry(io_context) {}

  void listen(const std::string& address) {
    try {
      const tcp::endpoint endpoint(asio::ip::make_address(address), 0);
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

  static awaitable<void> accept(std::shared_ptr<Impl> self) {
    while (!self->stopped) {
      error_code error;
      tcp::socket socket = co_await self->acceptor.async_accept(into(error));
      if (self->stopped) break;
      if (!error) {
        self->meet(std::move(socket));
        continue;
      }
      // Out of descriptors, say: the next one may be free soon.
      log::warning("cannot accept a worker's connection: {}", error.message());
      self->retry.expires_after(kAcceptRetry);
      co_await self->retry.async_wait(into(error));
    }
  }

  void meet(tcp::socket socket) {
    // The oldest goes: a worker answers within a round trip, so the oldest is no worker.
    if (strangers.size() >= kMaxStrangers + seen.size()) {
      drop(strangers.front(), "too many connections without a proof");
    }
    auto stranger = std::make_shared<Stranger>(std::move(socket));
    strangers.push_back(stranger);
    error_code ignored;
    const tcp::endpoint peer = stranger->socket.remote_endpoint(ignored);
    stranger->name = fmt::format("{}:{}", peer.address().to_string(), peer.port());
    tune_tcp_socket(stranger->socket.native_handle());
    stranger->deadline.expires_after(kSilenceLimit);
    stranger->deadline.async_wait([self = shared_from_this(), stranger](error_code error) {
      if (!error) self->drop(stranger, "no proof within 10 seconds");
    });
    asio::co_spawn(
        stranger->socket.get_executor(), greet(shared_from_this(), stranger), asio::detached);
  }

  // From the challenge to the proof; a stranger that is dropped meanwhile has a closed socket.
  static awaitable<void> greet(std::shared_ptr<Impl> self, StrangerPtr stranger) {
    error_code error;
    const handshake::Nonce nonce = handshake::make_nonce();
    const handshake::Challenge challenge = handshake::make_challenge(nonce);
    co_await asio::async_write(stranger->socket, asio::buffer(challenge), into(error));
    if (error) co_return self->drop(stranger, error.message());
    handshake::Answer answer{};
    // Stops at the first byte that cannot be a worker's.
    const auto wanted = [&answer](error_code failure, size_t received) -> size_t {
      const std::span<const uint8_t> bytes(answer);
      if (failure || !handshake::prefix_fits(bytes.first(received))) return 0;
      return bytes.size() - received;
    };
    const size_t received =
        co_await asio::async_read(stranger->socket, asio::buffer(answer), wanted, into(error));
    if (error) co_return self->drop(stranger, error.message());
    if (received < answer.size()) co_return self->drop(stranger, "not a worker");
    int32_t rank = -1;
    handshake::Nonce worker_nonce;
    const std::string objection = self->judge(nonce, answer, &rank, &worker_nonce);
    if (!objection.empty()) co_return self->drop(stranger, objection);
    const auto place = self->seen.begin() + rank;
    *place = true;
    const auto proof = handshake::make_proof(self->key, nonce, worker_nonce, rank);
    co_await asio::async_write(stranger->socket, asio::buffer(proof), into(error));
    if (error || stranger->dropped) {
      *place = false;  // it may dial again
      co_return self->drop(stranger, error.message());
    }
    stranger->deadline.cancel();
    stranger->dropped = true;  // no stranger any more
    self->strangers.remove(stranger);
    self->on_link(rank, make_worker_link(std::move(stranger->socket), rank, self->events));
  }

  // What is wrong with an answer; empty: nothing.
  std::string judge(const handshake::Nonce& nonce, const handshake::Answer& answer, int32_t* rank,
      handshake::Nonce* worker_nonce) const {
    if (!handshake::read_answer(key, nonce, answer, rank, worker_nonce)) {
      return "it does not hold the session key";
    }
    if (*rank < 0 || static_cast<size_t>(*rank) >= seen.size()) {
      return fmt::format("there is no rank {}", *rank);
    }
    const bool taken = seen[static_cast<size_t>(*rank)];
    return taken ? fmt::format("rank {} is connected already", *rank) : "";
  }

  void drop(const StrangerPtr& stranger, const std::string& reason) {
    if (stranger->dropped) return;
    stranger->dropped = true;
    if (!stopped) log::warning("dropped a connection from {}: {}", stranger->name, reason);
    error_code ignored;
    stranger->deadline.cancel();
    stranger->socket.close(ignored);
    strangers.remove(StrangerPtr(stranger));  // the argument may be an element
  }

  void stop() {
    if (stopped) return;
    stopped = true;
    error_code ignored;
    acceptor.close(ignored);
    retry.cancel();
    while (!strangers.empty()) drop(strangers.front(), "");
  }

  const SessionKey key;
  std::vector<bool> seen;  // ranks that have proved the key
  std::shared_ptr<const LinkEvents> events;
  OnLink on_link;
  tcp::acceptor acceptor;
  asio::steady_timer retry;
  std::list<StrangerPtr> strangers;  // oldest first
  uint16_t port = 0;
  bool stopped = false;
};

LinkListener::LinkListener(boost::asio::io_context& io, const std::string& address,
    const SessionKey& key, int num_ranks, LinkEvents events, OnLink on_link)
    : impl_(std::make_shared<Impl>(io, key, num_ranks, std::move(events), std::move(on_link))) {
  impl_->listen(address);
  asio::co_spawn(io, Impl::accept(impl_), asio::detached);
}

LinkListener::~LinkListener() { stop(); }

uint16_t LinkListener::port() const { return impl_->port; }

void LinkListener::stop() { impl_->stop(); }

}  // namespace millrace
