// A client's bytes, as they are or over TLS: nobody else knows which. Used on its strand; at most
// one read and one write at a time.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/strand.hpp>
#include <memory>
#include <optional>
#include <string>
#include <utility>

namespace millrace {

// TLS 1.2 or newer with this certificate (its chain behind it) and key, both PEM; null without
// either. Throws Error(kUsage or kInput) naming the flag and the file.
std::unique_ptr<boost::asio::ssl::context> make_tls(
    const std::string& certificate, const std::string& key);

class Stream {
 public:
  using Strand = boost::asio::strand<boost::asio::io_context::executor_type>;
  using Socket = boost::asio::basic_stream_socket<boost::asio::ip::tcp, Strand>;
  using Error = boost::system::error_code;

  // `tls`: null for plain bytes; outlives it.
  Stream(Socket socket, boost::asio::ssl::context* tls) : socket_(std::move(socket)) {
    if (tls != nullptr) tls_.emplace(socket_, *tls);
  }
  Stream(const Stream&) = delete;

  // The client's address; empty when it has gone.
  std::string client() const {
    Error error;
    const auto endpoint = socket_.remote_endpoint(error);
    return error ? "" : endpoint.address().to_string();
  }
  Strand get_executor() { return socket_.get_executor(); }
  // Handlers as Asio has them.
  template <typename F>
  void async_start(F done) {
    Error ignored;
    socket_.non_blocking(true, ignored);
    if (tls_) tls_->async_handshake(boost::asio::ssl::stream_base::server, std::move(done));
    else done(Error());
  }
  template <typename Buffer, typename F>
  void async_read_some(const Buffer& buffer, F done) {
    if (tls_ && !ended_) tls_->async_read_some(buffer, std::move(done));
    else socket_.async_read_some(buffer, std::move(done));
  }
  // What the kernel takes at once; never waits. With TLS nothing: would_block.
  template <typename Buffer>
  size_t write_some(const Buffer& buffer, Error& error) {
    if (!tls_) return socket_.write_some(buffer, error);
    error = boost::asio::error::would_block;
    return 0;
  }
  template <typename Buffer, typename F>
  void async_write_some(const Buffer& buffer, F done) {
    if (tls_) tls_->async_write_some(buffer, std::move(done));
    else socket_.async_write_some(buffer, std::move(done));
  }
  // Tells the client that nothing follows; a read under way ends with an error when that takes
  // time. `done()` when what comes in may be read on, to be dropped.
  template <typename F>
  void async_end(F done) {
    auto ended = [this, done = std::move(done)](const Error&) mutable {
      Error ignored;
      socket_.shutdown(Socket::shutdown_send, ignored);
      ended_ = true;
      done();
    };
    if (!tls_) return ended({});
    Error ignored;
    socket_.cancel(ignored);
    tls_->async_shutdown(std::move(ended));
  }
  bool ended() const { return ended_; }
  void close() {
    Error ignored;
    socket_.close(ignored);
  }

 private:
  Socket socket_;
  std::optional<boost::asio::ssl::stream<Socket&>> tls_;
  bool ended_ = false;
};

}  // namespace millrace
