// Inside the room: the coordinator's end of an authenticated TCP connection. Coordinator's thread.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <memory>

#include "comm/link.h"

namespace millrace {

// Reads from the next turn of the io_context on, when the link has been handed over.
std::unique_ptr<WorkerLink> make_tcp_worker_link(
    boost::asio::ip::tcp::socket socket, int rank, std::shared_ptr<const LinkEvents> events);

}  // namespace millrace
