// `millrace bench comm` on one rank: what ranks exchange in a step, each alone, through the
// interfaces that the executor uses.
#pragma once

#include <vector>

#include "engine/protocol/engine_config.h"
#include "engine/protocol/messages.h"
#include "engine/worker/backend.h"
#include "parallel/topology.h"

namespace millrace {

// Collective: every rank of the job calls it. Bytes of a figure: what must cross the link to a rank
// at least. Compute thread.
std::vector<Figure> bench_comm(const Topology& topology, Backend& backend,
    const EngineConfig& config, int64_t hidden_size, int64_t vocab_size);

}  // namespace millrace
