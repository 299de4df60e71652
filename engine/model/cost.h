// What the parts of a model cost, for cutting it over stages. Pure; every rank computes the same.
#pragma once

#include <vector>

#include "engine/model/config.h"
#include "engine/protocol/engine_config.h"
#include "parallel/partition.h"

namespace millrace {

// Weights read per token by one decoder layer, and by the head. (The embedding reads one row.)
double layer_cost(const ModelConfig& config);
double head_cost(const ModelConfig& config);

// The stages of a model under engine.pp: by engine.pp_layers if given, else by cost.
// Throws Error(kLayout).
std::vector<Stage> cut_stages(const ModelConfig& config, const EngineConfig& engine);

}  // namespace millrace
