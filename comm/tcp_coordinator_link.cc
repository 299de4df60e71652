// The worker's end of the control plane over TCP: plain blocking sockets, for the thread that owns
// the worker's loop.
#include <fmt/format.h>
#include <netdb.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>

#include "comm/handshake.h"
#include "comm/tcp_socket.h"
#include "engine/base/log.h"
#include "engine/base/status.h"
#include "engine/protocol/messages.h"

namespace millrace {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kConnectLimit{2'000};  // of one address: another one may be the right one
constexpr milliseconds kHandshakeLimit{10'000};
constexpr milliseconds kRetryPause{100};

class Socket {
 public:
  explicit Socket(int fd) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&&) = delete;
  ~Socket() {
    if (fd_ >= 0) ::close(fd_);
  }
  int fd() const { return fd_; }

  // Of connecting, of each read and of each write; zero: none.
  void set_time_limit(milliseconds limit) const {
    const timeval value{limit.count() / 1000, limit.count() % 1000 * 1000};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &value, sizeof value);
    setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &value, sizeof value);
  }

  // False at the end of the stream or on an error, which errno then tells (0: end of stream).
  bool read_all(std::span<uint8_t> out) const {
    while (!out.empty()) {
      const ssize_t n = ::recv(fd_, out.data(), out.size(), 0);
      if (n < 0 && errno == EINTR) continue;
      if (n == 0) errno = 0;
      if (n <= 0) return false;
      out = out.subspan(static_cast<size_t>(n));
    }
    return true;
  }
  bool write_all(std::span<const uint8_t> bytes) const {
    while (!bytes.empty()) {
      const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return false;
      bytes = bytes.subspan(static_cast<size_t>(n));
    }
    return true;
  }

 private:
  int fd_;
};

class TcpCoordinatorLink final : public CoordinatorLink {
 public:
  explicit TcpCoordinatorLink(Socket socket) : socket_(std::move(socket)) {}

  bool receive(Bytes* frame) override {
    frame->resize(kFrameHeaderBytes);
    FrameHeader header;
    if (!socket_.read_all(*frame)) return false;
    if (!decode(*frame, &header)) {
      log::error("the coordinator sent a malformed frame; the link ends");
      shutdown();
      return false;
    }
    frame->resize(kFrameHeaderBytes + header.length);
    return socket_.read_all(std::span<uint8_t>(*frame).subspan(kFrameHeaderBytes));
  }

  bool send(const Bytes& frame) override {
    const std::lock_guard lock(send_mutex_);
    return socket_.write_all(frame);
  }

  // Not close(): the descriptor stays ours until both threads are done with it.
  void shutdown() override { ::shutdown(socket_.fd(), SHUT_RDWR); }

 private:
  Socket socket_;
  std::mutex send_mutex_;  // one whole frame after the other
};

// The reason of the last failed call, for a sentence.
std::string last_reason() {
  if (errno == 0) return "it closed the connection";
  if (errno == EAGAIN || errno == EINPROGRESS) return "no answer in time";
  return std::strerror(errno);
}

// Empty when the coordinator has proved that it holds the key; else what went wrong.
std::string shake_hands(const Socket& socket, const SessionKey& key, int rank) {
  handshake::Challenge challenge;
  if (!socket.read_all(challenge)) return last_reason();
  handshake::Nonce coordinator_nonce;
  if (!handshake::read_challenge(challenge, &coordinator_nonce)) {
    return "it is no Millrace coordinator of this version";
  }
  const handshake::Nonce worker_nonce = handshake::make_nonce();
  if (!socket.write_all(handshake::make_answer(key, coordinator_nonce, worker_nonce, rank))) {
    return last_reason();
  }
  handshake::Mac proof;
  if (!socket.read_all(proof)) {
    return errno == 0 ? "it refused this rank or its session key" : last_reason();
  }
  if (!handshake::equal(proof, handshake::make_proof(key, coordinator_nonce, worker_nonce, rank))) {
    return "it does not hold the session key";
  }
  return "";
}

// One try at one address: a link, or the reason why not.
std::unique_ptr<CoordinatorLink> dial_once(const std::string& address, uint16_t port,
    const SessionKey& key, int rank, milliseconds limit, std::string* reason) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  if (const int error = getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &list)) {
    *reason = gai_strerror(error);
    return nullptr;
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(list, freeaddrinfo);
  for (const addrinfo* entry = list; entry != nullptr; entry = entry->ai_next) {
    Socket socket(::socket(entry->ai_family, entry->ai_socktype | SOCK_CLOEXEC, 0));
    if (socket.fd() >= 0) socket.set_time_limit(std::min(limit, kConnectLimit));
    if (socket.fd() < 0 || ::connect(socket.fd(), entry->ai_addr, entry->ai_addrlen) != 0) {
      *reason = last_reason();
      continue;
    }
    tune_tcp_socket(socket.fd());
    socket.set_time_limit(std::min(limit, kHandshakeLimit));
    *reason = shake_hands(socket, key, rank);
    if (!reason->empty()) continue;
    socket.set_time_limit(milliseconds(0));
    return std::make_unique<TcpCoordinatorLink>(std::move(socket));
  }
  return nullptr;
}

}  // namespace

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
