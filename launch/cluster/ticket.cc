#include "launch/cluster/ticket.h"

#include <unistd.h>

#include <cerrno>

#include "engine/base/check.h"
#include "engine/base/status.h"

namespace millrace {

namespace {

constexpr uint32_t kMagic = 0x3154524d;  // "MRT1"
constexpr size_t kHeaderBytes = 8;       // magic, length of the rest
constexpr size_t kMaxBytes = 4096;

bool read_exactly(int fd, std::span<uint8_t> out) {
  while (!out.empty()) {
    const ssize_t got = read(fd, out.data(), out.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    out = out.subspan(static_cast<size_t>(got));
  }
  return true;
}

}  // namespace

// What is written and what is read, in this order (engine/base/bytes.h).
void fields(auto& io, Is<LaunchTicket> auto& ticket) {
  for (auto& byte : ticket.key) io(byte);
  io.list(ticket.addresses, kMaxBytes);
  io(ticket.port, ticket.tp, ticket.pp, ticket.timeout_s, ticket.log_level, ticket.log_json);
}

Bytes encode(const LaunchTicket& ticket) {
  ByteWriter out;
  out(kMagic, uint32_t{0}, ticket);
  CHECK(out.size() <= kMaxBytes, "a ticket of {} bytes", out.size());
  out.patch(4, static_cast<uint32_t>(out.size() - kHeaderBytes));
  return out.take();
}

bool decode(std::span<const uint8_t> bytes, LaunchTicket* ticket) {
  ByteReader in(bytes);
  if (in.get<uint32_t>() != kMagic || in.get<uint32_t>() != in.remaining()) return false;
  *ticket = {};
  in(*ticket);
  return in.done() && ticket->tp >= 1 && ticket->pp >= 1;
}

Bytes read_ticket(int fd) {
  Bytes bytes(kHeaderBytes);
  if (read_exactly(fd, bytes)) {
    ByteReader header(bytes);
    const auto magic = header.get<uint32_t>();
    const auto length = header.get<uint32_t>();
    if (magic == kMagic && length <= kMaxBytes - kHeaderBytes) {
      bytes.resize(kHeaderBytes + length);
      if (read_exactly(fd, std::span(bytes).subspan(kHeaderBytes))) return bytes;
    }
  }
  throw Error(ExitCode::kUsage,
      "`millrace worker` is started by millrace itself; run `millrace serve MODEL -tp N "
      "-pp M` instead");
}

}  // namespace millrace
