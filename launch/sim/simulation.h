// Requests against replicas over simulated time, and what can be read from it. Pure; one thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "launch/bench/workload.h"
#include "launch/sim/replica.h"

namespace millrace {

// What became of one request.
struct Outcome {
  Arrival arrival;
  std::vector<double> token_s;  // when each token reached the edge
  bool done = false;            // false: refused, it can never fit
};

struct SimResult {
  // What the engine had done by the end of a step.
  struct Progress {
    double at_s = 0;
    uint64_t tokens_computed = 0;
  };
  struct ReplicaTimes {
    uint32_t num_blocks = 0;  // of the KV cache
    std::vector<Replica::StageTimes> stages;
    std::vector<Span> runnable;      // while at least pp requests were open
    std::vector<Progress> progress;  // in order
  };
  std::vector<Outcome> outcomes;  // in the order of the arrivals
  std::vector<ReplicaTimes> replicas;

  // From when a share of the requests had ended until another share had; shares in [0, 1].
  Span between(double first_share, double last_share) const;
  // Tokens computed (prompts and outputs) per second of `window`.
  double tokens_per_s(const Span& window) const;
  // stage_bubble_fraction of docs/architecture.md over all stages; 0 when pp requests were never
  // open at once.
  double bubble_fraction(const Span& window) const;
};

// `arrivals` are sorted by time; each goes to the replica with the fewest open requests. `seed` is
// of the prompts' ids: no two prompts are alike. Throws Error as Replica does.
SimResult simulate(const ReplicaConfig& config, int num_replicas, std::span<const Arrival> arrivals,
    uint64_t seed);

}  // namespace millrace
