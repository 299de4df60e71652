// Replicas as the tests of this folder simulate them.
#pragma once

#include "engine/base/file.h"
#include "launch/sim/simulation.h"

namespace millrace {

inline ReplicaConfig make_replica(const std::string& shape, int tp, int pp) {
  const std::string path = "configs/shapes/" + shape + "/config.json";
  ReplicaConfig config;
  config.model = parse_hf_config(read_file(path, 1 << 20, ExitCode::kModel), "", path);
  config.engine.model_path = shape;
  config.engine.tp = tp;
  config.engine.pp = pp;
  config.engine.max_num_seqs = 256 * pp;
  config.engine.max_num_batched_tokens = 8192;
  config.gpu = find_gpu("h200");
  return config;
}

}  // namespace millrace
