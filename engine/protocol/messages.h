// Everything else that crosses the control plane: handshake, readiness, heartbeats, the end.
// A frame on a link is FrameHeader, then `length` bytes of body: encode() of one of these values.
// within_limits() is what a reader holds a value to.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/bytes.h"
#include "engine/protocol/engine_config.h"

namespace millrace {

inline constexpr uint32_t kProtocolVersion = 3;
inline constexpr uint32_t kMaxFrameBytes = 64u << 20;
inline constexpr size_t kMaxTextBytes = 64 << 10;  // of a sentence or description

enum class FrameType : uint16_t {
  kWelcome = 1,    // coordinator -> worker: EngineConfig
  kReady = 2,      // worker -> coordinator: Ready
  kStart = 3,      // coordinator -> worker: Start
  kStarted = 4,    // worker -> coordinator: it can run plans; no body
  kPlan = 5,       // coordinator -> worker: StepPlan
  kResult = 6,     // worker -> coordinator: StepResult
  kHeartbeat = 7,  // worker -> coordinator: Heartbeat
  kFailed = 8,     // worker -> coordinator: Failed; the worker exits after it
  kShutdown = 9,   // coordinator -> worker: finish and exit 0
  kTrace = 10,     // worker -> coordinator's shell: StepTrace, with --profile
};

// Twelve bytes: u16 version, u16 type, u32 epoch, u32 length. A frame of an older epoch is dropped;
// a wrong version or length ends the link.
struct FrameHeader {
  uint16_t version = kProtocolVersion;
  FrameType type = FrameType::kHeartbeat;
  uint32_t epoch = 0;
  uint32_t length = 0;
};
void fields(auto& io, Is<FrameHeader> auto& header) {
  io(header.version, header.type, header.epoch, header.length);
}
inline constexpr size_t kFrameHeaderBytes = 12;

// One thing that a rank measured (EngineConfig::bench).
struct Figure {
  std::string name;
  double seconds = 0;
  double bytes = 0;  // that must be read and written, or cross a link, at least
  double flop = 0;
};
void fields(auto& io, Is<Figure> auto& figure) {
  io(figure.name, figure.seconds, figure.bytes, figure.flop);
}
inline constexpr size_t kMaxFigures = 1024;

// What a rank found when it had loaded its part.
struct Ready {
  int32_t rank = 0;
  int64_t weight_bytes = 0;
  int64_t kv_bytes_per_block = 0;
  uint32_t num_blocks = 0;      // that fit this rank's memory
  uint64_t config_hash = 0;     // of model shape and layout as this rank read them
  std::string description;      // device and layers, for the log: "cpu, 2 threads, layers 0-14"
  std::vector<Figure> figures;  // of a benchmark
};
void fields(auto& io, Is<Ready> auto& ready) {
  io(ready.rank, ready.weight_bytes, ready.kv_bytes_per_block, ready.num_blocks, ready.config_hash);
  io.text(ready.description, kMaxTextBytes);
  io.list(ready.figures, kMaxFigures);
}
bool within_limits(const Ready& ready);

// The coordinator's answer to all Ready: the minimum over ranks.
struct Start {
  uint32_t num_blocks = 0;
};
void fields(auto& io, Is<Start> auto& start) { io(start.num_blocks); }
bool within_limits(const Start& start);

// Every second, from a thread of its own; progress stands still when the compute thread hangs.
struct Heartbeat {
  int32_t rank = 0;
  uint64_t steps_done = 0;
  uint64_t progress = 0;  // ticks once per layer
};
void fields(auto& io, Is<Heartbeat> auto& beat) { io(beat.rank, beat.steps_done, beat.progress); }
bool within_limits(const Heartbeat& heartbeat);

struct Failed {
  int32_t rank = 0;
  int32_t exit_code = 0;  // ExitCode
  std::string message;
};
void fields(auto& io, Is<Failed> auto& failed) {
  io(failed.rank, failed.exit_code);
  io.text(failed.message, kMaxTextBytes);
}
bool within_limits(const Failed& failed);

// A whole frame: header and body, ready to be sent.
Bytes make_frame(FrameType type, uint32_t epoch, std::span<const uint8_t> body);
// False on a short span, a wrong version, an unknown type or a length above kMaxFrameBytes.
bool decode(std::span<const uint8_t> bytes, FrameHeader* header);

}  // namespace millrace
