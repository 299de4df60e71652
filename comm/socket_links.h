// Inside the room: the two ends of a link over a stream socket, TCP or local.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <memory>

#include "comm/link.h"

namespace millrace {

using Stream = boost::asio::generic::stream_protocol;

// A completion token: waits for an operation whose failure is told in `error`.
inline auto into(boost::system::error_code& error) {
  return boost::asio::redirect_error(boost::asio::use_awaitable, error);
}

// No delay for small frames; a host that vanished without a word is noticed within half a minute
// (a process that ended or was killed, at once). Of every socket of the control plane; any thread.
void tune_tcp_socket(int fd);

// The coordinator's end of an authenticated connection. Coordinator's thread. Reads from the next
// turn of the io_context on, when the link has been handed over.
std::unique_ptr<WorkerLink> make_worker_link(
    Stream::socket socket, int rank, std::shared_ptr<const LinkEvents> events);

}  // namespace millrace
