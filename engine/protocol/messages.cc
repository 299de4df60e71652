#include "engine/protocol/messages.h"

#include <algorithm>

#include "engine/base/check.h"

namespace millrace {

Bytes make_frame(FrameType type, uint32_t epoch, std::span<const uint8_t> body) {
  CHECK(body.size() <= kMaxFrameBytes, "a frame of {} bytes", body.size());
  Bytes frame = encode(
      FrameHeader{.type = type, .epoch = epoch, .length = static_cast<uint32_t>(body.size())});
  frame.insert(frame.end(), body.begin(), body.end());
  return frame;
}

bool decode(std::span<const uint8_t> bytes, FrameHeader* header) {
  ByteReader in(bytes);
  FrameHeader read;
  in(read);
  if (!in.ok() || read.version != kProtocolVersion || read.type < FrameType::kWelcome ||
      read.type > FrameType::kTrace || read.length > kMaxFrameBytes) {
    return false;
  }
  *header = read;
  return true;
}

bool within_limits(const Ready& ready) {
  const bool measured =
      std::all_of(ready.figures.begin(), ready.figures.end(), [](const Figure& f) {
        return f.seconds >= 0 && f.bytes >= 0 && f.flop >= 0;  // a NaN is neither
      });
  return measured && ready.rank >= 0 && ready.weight_bytes >= 0 && ready.kv_bytes_per_block >= 0;
}

bool within_limits(const Start& start) { return start.num_blocks >= 1; }

bool within_limits(const Heartbeat& heartbeat) { return heartbeat.rank >= 0; }

bool within_limits(const Failed& failed) {
  return failed.rank >= 0 && failed.exit_code >= 0 && failed.exit_code <= 255;
}

}  // namespace millrace
