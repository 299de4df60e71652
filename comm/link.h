// The control plane's transport: ordered, authenticated frames between the coordinator and one
// worker. A link moves whole frames (engine/protocol/messages.h) as opaque bytes.
#pragma once

#include <array>
#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/bytes.h"

namespace millrace {

// 256 random bits, made per run, spread by MPI or a pipe; never argv, environment or log.
using SessionKey = std::array<uint8_t, 32>;
SessionKey make_session_key();

// The coordinator's end of the way to one rank. Used from the coordinator's thread (its
// io_context); callbacks come on that thread, none after the link is destroyed. A link is destroyed
// before its io_context.
class WorkerLink {
 public:
  virtual ~WorkerLink() = default;  // drops what has not left yet
  // Queues the frame; after the end of the link it goes nowhere.
  virtual void send(std::shared_ptr<const Bytes> frame) = 0;
  // The worker gets what was sent before, then the end; on_closed follows.
  virtual void close() = 0;
};

// What the coordinator hears of its links.
struct LinkEvents {
  std::function<void(int rank, Bytes frame)> on_frame;  // header and body, header well-formed
  std::function<void(int rank, const std::string& reason)> on_closed;  // once per link
};

// The worker's end: blocking, for the thread that owns the worker's loop; send() from any thread.
class CoordinatorLink {
 public:
  virtual ~CoordinatorLink() = default;
  // Next whole frame; false when the link ended (coordinator gone or closed).
  virtual bool receive(Bytes* frame) = 0;
  // False when the link has ended.
  virtual bool send(const Bytes& frame) = 0;
  // Wakes a blocked receive() with false; any thread.
  virtual void shutdown() = 0;
};

// Accepts one TCP connection per rank, runs the handshake on each, and hands over its link.
class LinkListener {
 public:
  using OnLink = std::function<void(int rank, std::unique_ptr<WorkerLink>)>;
  // Listens on `address` (an interface, never all of them unless asked), any free port. Throws
  // Error(kAddress). A peer that fails the handshake is dropped and logged; one that is silent for
  // 10 s too. A rank out of range or seen before is refused. On the coordinator's thread, or while
  // it does not run; nothing is called once the listener is stopped or destroyed, while the links
  // it handed over live on.
  LinkListener(boost::asio::io_context& io, const std::string& address, const SessionKey& key,
      int num_ranks, LinkEvents events, OnLink on_link);
  ~LinkListener();
  LinkListener(const LinkListener&) = delete;
  uint16_t port() const;
  void stop();

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

// Dials the coordinator and proves the key both ways. `addresses` are tried in turn. Throws
// Error(kAddress) naming the address and reason after `timeout_s`.
std::unique_ptr<CoordinatorLink> dial_coordinator(const std::vector<std::string>& addresses,
    uint16_t port, const SessionKey& key, int rank, int timeout_s);

// Both ends in one process (mode 1), over a pair of local sockets.
struct InProcessLink {
  std::unique_ptr<WorkerLink> worker_link;            // for the coordinator
  std::unique_ptr<CoordinatorLink> coordinator_link;  // for the worker's thread
};
InProcessLink make_in_process_link(boost::asio::io_context& io, int rank, LinkEvents events);

// This host's addresses that a peer could dial, most likely first; 127.0.0.1 when `local_only`.
std::vector<std::string> local_addresses(bool local_only);
// This host's bridges of containers and virtual machines, by interface name: other hosts have
// theirs of the same address, so nothing between hosts may go by them.
std::vector<std::string> local_bridges();

}  // namespace millrace
