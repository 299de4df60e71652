#include "comm/tcp_worker_link.h"

#include <fmt/format.h>

#include <boost/asio/post.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <deque>

#include "engine/protocol/messages.h"

namespace millrace {

namespace {

using boost::asio::ip::tcp;
using ErrorCodeType = boost::system::error_code;

// Lives as long as the link or a pending read or write; once the link is gone it calls nobody.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(tcp::socket socket, int rank, std::shared_ptr<const LinkEvents> events)
      : socket_(std::move(socket)), rank_(rank), events_(std::move(events)) {}

  void read_header() {
    if (!open_) return;
    frame_.resize(kFrameHeaderBytes);
    boost::asio::async_read(socket_, boost::asio::buffer(frame_),
        [self = shared_from_this()](ErrorCodeType error, size_t) {
          if (error) return self->lost(error);
          self->read_body();
        });
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
      boost::asio::post(
          socket_.get_executor(), [self = shared_from_this()] { self->finish_sending(); });
    }
  }

  void abandon() {
    events_ = nullptr;
    close_socket();
  }

 private:
  void read_body() {
    FrameHeader header;
    if (!decode(frame_, &header)) return end("the worker sent a malformed frame");
    frame_.resize(kFrameHeaderBytes + header.length);
    boost::asio::async_read(socket_,
        boost::asio::buffer(frame_.data() + kFrameHeaderBytes, header.length),
        [self = shared_from_this()](ErrorCodeType error, size_t) {
          if (error) return self->lost(error);
          self->hand_over();
        });
  }

  void hand_over() {
    // A copy of the pointer: the callback may destroy the link.
    if (const auto events = events_; events != nullptr) {
      events->on_frame(rank_, std::exchange(frame_, Bytes()));
    }
    read_header();
  }

  void write_next() {
    boost::asio::async_write(socket_, boost::asio::buffer(*queue_.front()),
        [self = shared_from_this()](ErrorCodeType error, size_t) {
          if (error) return self->lost(error);
          self->written();
        });
  }

  void written() {
    if (!open_) return;
    queue_.pop_front();
    if (!queue_.empty()) return write_next();
    if (closing_) finish_sending();
  }

  // The worker reads what was sent, then sees the end. What it still says is read and dropped: a
  // socket closed with unread bytes would be reset, and the last frames with it.
  void finish_sending() {
    if (!open_) return;
    ErrorCodeType ignored;
    socket_.shutdown(tcp::socket::shutdown_send, ignored);
    tell("closed by the coordinator");
  }

  void lost(ErrorCodeType error) {
    end(error == boost::asio::error::eof
            ? "the worker closed the connection"
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
    ErrorCodeType ignored;
    socket_.shutdown(tcp::socket::shutdown_both, ignored);
    socket_.close(ignored);
  }

  tcp::socket socket_;
  const int rank_;
  std::shared_ptr<const LinkEvents> events_;
  Bytes frame_;
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

std::unique_ptr<WorkerLink> make_tcp_worker_link(
    tcp::socket socket, int rank, std::shared_ptr<const LinkEvents> events) {
  const auto executor = socket.get_executor();
  auto connection = std::make_shared<Connection>(std::move(socket), rank, std::move(events));
  boost::asio::post(executor, [connection] { connection->read_header(); });
  return std::make_unique<Link>(std::move(connection));
}

}  // namespace millrace
