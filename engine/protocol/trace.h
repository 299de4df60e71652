// What one rank did in one step, for --profile: sent by every rank, before the step's result. All
// times are nanoseconds of the host's real clock, so that ranks lie on one time line; a GPU's own
// are put there by executor.cc.
#pragma once

#include <cstdint>

#include "engine/base/bytes.h"

namespace millrace {

struct StepTrace {
  uint64_t sequence = 0;
  uint32_t rows = 0;
  uint32_t tokens = 0;
  int64_t host_begin = 0;  // the rank took the plan
  int64_t host_end = 0;    // and had enqueued all of it
  int64_t last_end = 0;    // of the step before on the device; begin in the first step
  int64_t begin = 0;       // the device got to this step
  int64_t ready = 0;       // its input was there: the plan, hidden states and ids of other stages
  int64_t forward = 0;     // its layers and logits were done
  int64_t end = 0;         // sampled, or handed to the next stage
  int64_t comm = 0;        // of ready..forward: the host's wait in tensor-parallel sums (CPU)
};
void fields(auto& io, Is<StepTrace> auto& t) {
  io(t.sequence, t.rows, t.tokens, t.host_begin, t.host_end, t.last_end, t.begin, t.ready,
      t.forward, t.end, t.comm);
}
inline bool within_limits(const StepTrace& t) {
  return t.last_end <= t.begin && t.begin <= t.ready && t.ready <= t.forward &&
         t.forward <= t.end && t.comm >= 0;
}

}  // namespace millrace
