// Everything else that crosses the control plane: handshake, readiness, heartbeats, the end.
// A frame on a link is FrameHeader, then `length` bytes of body.
#pragma once

#include <cstdint>
#include <string>

#include "engine/base/bytes.h"
#include "engine/protocol/engine_config.h"

namespace millrace {

inline constexpr uint32_t kProtocolVersion = 1;
inline constexpr uint32_t kMaxFrameBytes = 64u << 20;

enum class FrameType : uint16_t {
  kWelcome = 1,    // coordinator -> worker: EngineConfig
  kReady = 2,      // worker -> coordinator: Ready
  kStart = 3,      // coordinator -> worker: Start; plans follow
  kPlan = 4,       // coordinator -> worker: StepPlan
  kResult = 5,     // worker -> coordinator: StepResult
  kHeartbeat = 6,  // worker -> coordinator: Heartbeat
  kFailed = 7,     // worker -> coordinator: Failed; the worker exits after it
  kShutdown = 8,   // coordinator -> worker: finish and exit 0
};

// Twelve bytes: u16 version, u16 type, u32 epoch, u32 length. A frame of an older epoch is dropped;
// a wrong version or length ends the link.
struct FrameHeader {
  uint16_t version = kProtocolVersion;
  FrameType type = FrameType::kHeartbeat;
  uint32_t epoch = 0;
  uint32_t length = 0;
};
inline constexpr size_t kFrameHeaderBytes = 12;

// What a rank found when it had loaded its part.
struct Ready {
  int32_t rank = 0;
  int64_t weight_bytes = 0;
  int64_t kv_bytes_per_block = 0;
  uint32_t num_blocks = 0;   // that fit this rank's memory
  uint64_t config_hash = 0;  // of model shape and layout as this rank read them
  std::string description;   // device and layers, for the log: "cpu, 2 threads, layers 0-14"
};

// The coordinator's answer to all Ready: the minimum over ranks.
struct Start {
  uint32_t num_blocks = 0;
};

// Every second, from a thread of its own; progress stands still when the compute thread hangs.
struct Heartbeat {
  int32_t rank = 0;
  uint64_t steps_done = 0;
  uint64_t progress = 0;  // ticks once per layer
};

struct Failed {
  int32_t rank = 0;
  int32_t exit_code = 0;  // ExitCode
  std::string message;
};

// A whole frame: header and body, ready to be sent.
Bytes make_frame(FrameType type, uint32_t epoch, std::span<const uint8_t> body);
// False on a short span, a wrong version, an unknown type or a length above kMaxFrameBytes.
bool decode(std::span<const uint8_t> bytes, FrameHeader* header);

Bytes encode(const EngineConfig& config);
Bytes encode(const Ready& ready);
Bytes encode(const Start& start);
Bytes encode(const Heartbeat& heartbeat);
Bytes encode(const Failed& failed);
bool decode(std::span<const uint8_t> bytes, EngineConfig* config);
bool decode(std::span<const uint8_t> bytes, Ready* ready);
bool decode(std::span<const uint8_t> bytes, Start* start);
bool decode(std::span<const uint8_t> bytes, Heartbeat* heartbeat);
bool decode(std::span<const uint8_t> bytes, Failed* failed);

}  // namespace millrace
