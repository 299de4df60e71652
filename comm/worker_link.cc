#include <fmt/format.h>
#include <netinet/tcp.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <deque>

#include "comm/socket_links.h"
#include "engine/protocol/messages.h"

namespace millrace {

namespace {

namespace asio = boost::asio;
using boost::system::error_code;

// Lives as long as the link or a pending read or write; once the link is gone it calls nobody.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Stream::socket socket, int rank, std::shared_ptr<const LinkEvents> events)
      : socket_(std::move(socket)), rank_(rank), events_(std::move(events)) {}

  static asio::awaitable<void> read_frames(std::shared_ptr<Connection> self) {
    while (self->open_) {
      error_code error;
      Bytes frame(kFrameHeaderBytes);
      co_await asio::async_read(self->socket_, asio::buffer(frame), into(error));
      if (error) co_return self->lost(error);
      FrameHeader header;
      if (!decode(frame, &header)) co_return self->end("the worker sent a malformed frame");
      frame.resize(kFrameHeaderBytes + header.length);
      co_await asio::async_read(
          self->socket_, asio::buffer(frame) + kFrameHeaderBytes, into(error));
      if (error) co_return self->lost(error);
      // A copy of the pointer: the callback may destroy the link.
      if (const auto events = self->events_) events->on_frame(self->rank_, std::move(frame));
    }
  }

  void send(std::shared_ptr<const Bytes> frame) {
    if (!open_ || closing_) return;
    queue_.push_back(std::move(frame));
    if (queue_.size() == 1) write_next();
  }

  void close() {
    if (!open_ || closing_) return;
    closing_ = true;
    // Told from a clean stack: close() may be called from anywhere in the coordinator.
    if (queue_.empty()) {
      asio::post(socket_.get_executor(), [self = shared_from_this()] { self->finish_sending(); });
    }
  }

  void abandon() {
    events_ = nullptr;
    close_socket();
  }

 private:
  void write_next() {
    asio::async_write(socket_, asio::buffer(*queue_.front()),
        [self = shared_from_this()](error_code error, size_t) {
          if (error) return self->lost(error);
          if (!self->open_) return;
          self->queue_.pop_front();
          if (!self->queue_.empty()) return self->write_next();
          if (self->closing_) self->finish_sending();
        });
  }

  // The worker reads what was sent, then sees the end. What it still says is read and dropped: a
  // socket closed with unread bytes would be reset, and the last frames with it.
  void finish_sending() {
    if (!open_) return;
    error_code ignored;
    socket_.shutdown(Stream::socket::shutdown_send, ignored);
    tell("closed by the coordinator");
  }

  void lost(error_code error) {
    end(error == asio::error::eof ? "the worker closed the connection"
                                  : fmt::format("the connection broke: {}", error.message()));
  }

  void end(const std::string& reason) {
    if (!open_) return;
    close_socket();
    tell(reason);
  }

  void tell(const std::string& reason) {
    if (const auto events = std::exchange(events_, nullptr)) events->on_closed(rank_, reason);
  }

  void close_socket() {
    open_ = false;
    error_code ignored;
    socket_.shutdown(Stream::socket::shutdown_both, ignored);
    socket_.close(ignored);
  }

  Stream::socket socket_;
  const int rank_;
  std::shared_ptr<const LinkEvents> events_;
  std::deque<std::shared_ptr<const Bytes>> queue_;  // the front one is being written
  bool open_ = true;
  bool closing_ = false;
};

class Link final : public WorkerLink {
 public:
  explicit Link(std::shared_ptr<Connection> connection) : connection_(std::move(connection)) {}
  ~Link() override { connection_->abandon(); }
  void send(std::shared_ptr<const Bytes> frame) override { connection_->send(std::move(frame)); }
  void close() override { connection_->close(); }

 private:
  std::shared_ptr<Connection> connection_;
};

}  // namespace

void tune_tcp_socket(int fd) {
  const auto set = [fd](int level, int option, int value) {
    setsockopt(fd, level, option, &value, sizeof value);  // advice: a refusal costs only time
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 10);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 5);
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, 30'000);
}

std::unique_ptr<WorkerLink> make_worker_link(
    Stream::socket socket, int rank, std::shared_ptr<const LinkEvents> events) {
  const auto executor = socket.get_executor();
  auto connection = std::make_shared<Connection>(std::move(socket), rank, std::move(events));
  asio::co_spawn(executor, Connection::read_frames(connection), asio::detached);
  return std::make_unique<Link>(std::move(connection));
}

}  // namespace millrace
