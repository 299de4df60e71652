// The constants that figures are measured against.
#pragma once

#include <cstdint>

#include "engine/model/checkpoint.h"

namespace millrace {

// Bytes per second that all cores of this host together read from memory: the best of several
// passes over a buffer far larger than the caches.
double measure_read_bandwidth();

// Bytes of weights that one decode step reads over all ranks: every tensor once, without the input
// embedding (a step reads one row of it) unless it is the head too.
int64_t streamed_weight_bytes(const Checkpoint& model);

}  // namespace millrace
