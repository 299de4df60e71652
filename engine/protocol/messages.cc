#include "engine/protocol/messages.h"

#include <utility>

#include "engine/base/check.h"

namespace millrace {

namespace {

constexpr size_t kMaxTextBytes = 64 << 10;  // of a sentence or description

bool known(FrameType type) { return type >= FrameType::kWelcome && type <= FrameType::kShutdown; }

// A sentence too long for its frame is cut: the peer would refuse all of it.
std::string_view cut(const std::string& text) {
  return std::string_view(text).substr(0, kMaxTextBytes);
}

// Hands `value` over if the reader ended exactly at the end and the value is within its limits.
template <typename T>
bool finish(const ByteReader& in, bool valid, T&& value, T* out) {
  if (!in.done() || !valid) return false;
  *out = std::forward<T>(value);
  return true;
}

}  // namespace

Bytes make_frame(FrameType type, uint32_t epoch, std::span<const uint8_t> body) {
  CHECK(body.size() <= kMaxFrameBytes, "a frame of {} bytes", body.size());
  ByteWriter out;
  out.put(static_cast<uint16_t>(kProtocolVersion));
  out.put(type);
  out.put(epoch);
  out.put(static_cast<uint32_t>(body.size()));
  Bytes frame = out.take();
  frame.insert(frame.end(), body.begin(), body.end());
  return frame;
}

bool decode(std::span<const uint8_t> bytes, FrameHeader* header) {
  ByteReader in(bytes);
  FrameHeader read;
  read.version = in.get<uint16_t>();
  read.type = in.get<FrameType>();
  read.epoch = in.get<uint32_t>();
  read.length = in.get<uint32_t>();
  if (!in.ok() || read.version != kProtocolVersion || !known(read.type) ||
      read.length > kMaxFrameBytes) {
    return false;
  }
  *header = read;
  return true;
}

Bytes encode(const EngineConfig& config) {
  ByteWriter out;
  put(out, config);
  return out.take();
}

bool decode(std::span<const uint8_t> bytes, EngineConfig* config) {
  ByteReader in(bytes);
  EngineConfig read = get_engine_config(in);
  const bool valid = within_limits(read);
  return finish(in, valid, std::move(read), config);
}

Bytes encode(const Ready& ready) {
  ByteWriter out;
  out.put(ready.rank);
  out.put(ready.weight_bytes);
  out.put(ready.kv_bytes_per_block);
  out.put(ready.num_blocks);
  out.put(ready.config_hash);
  out.put_string(cut(ready.description));
  return out.take();
}

bool decode(std::span<const uint8_t> bytes, Ready* ready) {
  ByteReader in(bytes);
  Ready read;
  read.rank = in.get<int32_t>();
  read.weight_bytes = in.get<int64_t>();
  read.kv_bytes_per_block = in.get<int64_t>();
  read.num_blocks = in.get<uint32_t>();
  read.config_hash = in.get<uint64_t>();
  read.description = in.get_string();
  const bool valid = read.rank >= 0 && read.weight_bytes >= 0 && read.kv_bytes_per_block >= 0 &&
                     read.description.size() <= kMaxTextBytes;
  return finish(in, valid, std::move(read), ready);
}

Bytes encode(const Start& start) {
  ByteWriter out;
  out.put(start.num_blocks);
  return out.take();
}

bool decode(std::span<const uint8_t> bytes, Start* start) {
  ByteReader in(bytes);
  Start read{in.get<uint32_t>()};
  const bool valid = read.num_blocks >= 1;
  return finish(in, valid, std::move(read), start);
}

Bytes encode(const Heartbeat& heartbeat) {
  ByteWriter out;
  out.put(heartbeat.rank);
  out.put(heartbeat.steps_done);
  out.put(heartbeat.progress);
  return out.take();
}

bool decode(std::span<const uint8_t> bytes, Heartbeat* heartbeat) {
  ByteReader in(bytes);
  Heartbeat read;
  read.rank = in.get<int32_t>();
  read.steps_done = in.get<uint64_t>();
  read.progress = in.get<uint64_t>();
  const bool valid = read.rank >= 0;
  return finish(in, valid, std::move(read), heartbeat);
}

Bytes encode(const Failed& failed) {
  ByteWriter out;
  out.put(failed.rank);
  out.put(failed.exit_code);
  out.put_string(cut(failed.message));
  return out.take();
}

bool decode(std::span<const uint8_t> bytes, Failed* failed) {
  ByteReader in(bytes);
  Failed read;
  read.rank = in.get<int32_t>();
  read.exit_code = in.get<int32_t>();
  read.message = in.get_string();
  const bool valid = read.rank >= 0 && read.exit_code >= 0 && read.exit_code <= 255 &&
                     read.message.size() <= kMaxTextBytes;
  return finish(in, valid, std::move(read), failed);
}

}  // namespace millrace
