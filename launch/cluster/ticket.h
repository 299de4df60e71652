// What a worker must know to find and trust its coordinator. It travels by a pipe to rank 0 and by
// MPI broadcast to the others, never by argv, environment or log. A value with a codec.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "comm/link.h"
#include "engine/base/bytes.h"

namespace millrace {

struct LaunchTicket {
  SessionKey key{};
  std::vector<std::string> addresses;  // of the coordinator, tried in turn
  uint16_t port = 0;
  int32_t tp = 1;
  int32_t pp = 1;
  int32_t timeout_s = 60;
  std::string log_level;
  bool log_json = false;
};

// At most 4 KiB, so that a pipe takes it whole.
Bytes encode(const LaunchTicket& ticket);
bool decode(std::span<const uint8_t> bytes, LaunchTicket* ticket);

// The bytes of the ticket waiting in `fd`. Throws Error(kUsage) when there is none: a worker that a
// person started by hand.
Bytes read_ticket(int fd);

}  // namespace millrace
