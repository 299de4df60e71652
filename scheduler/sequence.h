// One request inside the scheduler: how far it is planned, how far it is known, what it holds.
// Plain data of the scheduler's thread.
#pragma once

#include <cstdint>
#include <list>
#include <vector>

#include "engine/protocol/request.h"
#include "scheduler/block_pool.h"
#include "scheduler/scheduler.h"

namespace millrace {

// Where a sequence stands. It is in the list of its phase and in no other.
//
//   kWaiting -> kPrefill -> kDecode -> kPlanned -> kRetiring -> gone
//
// kPlanned: every position it may need is in a plan, results are due. kRetiring: it has ended, but
// plans in flight name it. A stop, an error or a cancel leads to kRetiring from anywhere.
enum class Phase : uint8_t { kWaiting, kPrefill, kDecode, kPlanned, kRetiring };
inline constexpr int kNumPhases = 5;

struct Scheduler::Sequence {
  RequestId id = 0;
  Request request;
  Phase phase = Phase::kWaiting;
  std::list<Sequence*>::iterator place;  // in the list of its phase

  // From admission on.
  uint16_t slot = 0;
  uint32_t reserved = 0;      // blocks it may come to hold
  std::vector<Block> blocks;  // block b holds positions [b * block_size, ...)
  int32_t num_computed = 0;   // positions planned
  int32_t num_emitted = 0;    // sampled tokens committed
  int32_t in_flight = 0;      // uncommitted plans that name it
  uint64_t last_plan = 0;     // the newest plan that samples for it

  int32_t num_prompt() const { return static_cast<int32_t>(request.prompt.size()); }
  // Positions to compute in all. The last token is emitted and never computed.
  int32_t num_positions() const { return num_prompt() + request.max_tokens - 1; }
  int32_t prompt_left() const { return num_prompt() - num_computed; }
};

}  // namespace millrace
