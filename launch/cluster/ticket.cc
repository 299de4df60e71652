#include "launch/cluster/ticket.h"

#include <unistd.h>

#include <algorithm>
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

Bytes encode(const LaunchTicket& ticket) {
  ByteWriter out;
  out.put(kMagic);
  out.put(uint32_t{0});
  out.put_array(std::span<const uint8_t>(ticket.key));
  out.put(static_cast<uint32_t>(ticket.addresses.size()));
  for (const std::string& address : ticket.addresses) out.put_string(address);
  out.put(ticket.port);
  out.put(ticket.tp);
  out.put(ticket.pp);
  out.put(ticket.timeout_s);
  out.put_string(ticket.log_level);
  out.put(static_cast<uint8_t>(ticket.log_json));
  CHECK(out.size() <= kMaxBytes, "a ticket of {} bytes", out.size());
  out.patch(4, static_cast<uint32_t>(out.size() - kHeaderBytes));
  return out.take();
}

bool decode(std::span<const uint8_t> bytes, LaunchTicket* ticket) {
  ByteReader in(bytes);
  if (in.get<uint32_t>() != kMagic || in.get<uint32_t>() != in.remaining()) return false;
  const auto key = in.get_array<uint8_t>();
  if (key.size() != ticket->key.size()) return false;
  std::copy(key.begin(), key.end(), ticket->key.begin());
  const auto num_addresses = in.get<uint32_t>();
  ticket->addresses.clear();
  for (uint32_t i = 0; i < num_addresses && in.ok(); ++i) {
    ticket->addresses.push_back(in.get_string());
  }
  ticket->port = in.get<uint16_t>();
  ticket->tp = in.get<int32_t>();
  ticket->pp = in.get<int32_t>();
  ticket->timeout_s = in.get<int32_t>();
  ticket->log_level = in.get_string();
  ticket->log_json = in.get<uint8_t>() != 0;
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
