// Where a rank stands: plain arithmetic over (tp, pp), made once. Ranks of one stage are
// neighbours: rank = pp_rank * tp + tp_rank.
#pragma once

#include "engine/base/check.h"

namespace millrace {

class Topology {
 public:
  constexpr Topology(int tp, int pp, int rank) : tp_(tp), pp_(pp), rank_(rank) {
    CHECK(tp >= 1 && pp >= 1 && rank >= 0 && rank < tp * pp, "rank {} of tp {} x pp {}", rank, tp,
        pp);
  }
  constexpr int tp() const { return tp_; }
  constexpr int pp() const { return pp_; }
  constexpr int rank() const { return rank_; }
  constexpr int num_ranks() const { return tp_ * pp_; }
  constexpr int tp_rank() const { return rank_ % tp_; }
  constexpr int pp_rank() const { return rank_ / tp_; }
  constexpr bool first_stage() const { return pp_rank() == 0; }
  constexpr bool last_stage() const { return pp_rank() == pp_ - 1; }
  // The rank of the same tp_rank in another stage.
  constexpr int rank_of_stage(int stage) const { return stage * tp_ + tp_rank(); }
  constexpr int previous() const { return rank_of_stage(pp_rank() - 1); }
  constexpr int next() const { return rank_of_stage(pp_rank() + 1); }
  // Buffers and uncommitted plans of a replica (docs/architecture.md, lanes).
  constexpr int num_lanes() const { return pp_ + 1; }

 private:
  int tp_;
  int pp_;
  int rank_;
};

}  // namespace millrace
