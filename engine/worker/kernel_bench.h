// `millrace bench kernels` on one rank: the verbs of a step, each alone, in this rank's shapes and
// through the interface that the model calls them by. The same body on the CPU and on a GPU.
#pragma once

#include <vector>

#include "engine/core/device.h"
#include "engine/kernels/ops.h"
#include "engine/model/decoder.h"
#include "engine/protocol/engine_config.h"
#include "engine/protocol/messages.h"

namespace millrace {

// Sizes beyond the configuration's limits (sequences, tokens of a step, max_position) and the free
// memory are left out. Every call finds other weights (its layer's) and other KV blocks than the
// one before, as far as memory goes: no cache serves them. Compute thread.
std::vector<Figure> bench_kernels(Device& device, Ops& ops, const Decoder& decoder,
    const EngineConfig& config, int32_t max_position);

}  // namespace millrace
