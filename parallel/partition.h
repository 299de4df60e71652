// How a model is cut: layers over stages by cost, heads and columns over tensor-parallel ranks.
// Pure functions; every rank and the coordinator compute the same.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace millrace {

// What one stage owns, as data: the decoder builds what it says.
struct Stage {
  int first_layer = 0;
  int num_layers = 0;
  bool has_embedding = false;
  bool has_head = false;
};

// Cuts layers into `num_stages` contiguous spans so that the dearest stage is as cheap as can be
// (exact, by dynamic programming). costs: one per layer, any unit; the embedding's cost is added
// to the first stage, the head's to the last. Every stage gets at least one layer; throws
// Error(kLayout) when there are fewer layers than stages.
std::vector<Stage> partition_layers(
    std::span<const double> layer_costs, double embedding_cost, double head_cost, int num_stages);
// The same by hand ("9,9,8,6"); throws Error(kLayout) unless they are num_stages positive numbers
// that add up to num_layers.
std::vector<Stage> partition_by_hand(
    std::span<const int32_t> layers_per_stage, int num_layers, int num_stages);

struct Range {
  int64_t begin = 0;
  int64_t size = 0;
  bool operator==(const Range&) const = default;
};

// The attention heads of one rank. KV groups are dealt as evenly as they go, the first ranks get
// the extra one (9 heads in 3 groups over 2 ranks = 6 + 3). With more ranks than KV heads each KV
// head is replicated over ranks that split its query heads as evenly as they go; a rank may then
// hold no head only if there are more ranks than query heads, which throws Error(kLayout).
struct HeadShard {
  Range heads;     // query heads
  Range kv_heads;  // the KV heads they read
};
HeadShard shard_heads(int num_heads, int num_kv_heads, int tp, int tp_rank);

// [0, size) in multiples of `multiple` over tp ranks, as evenly as they go; the last takes the
// remainder. Throws Error(kLayout) if a rank would get nothing.
Range shard_columns(int64_t size, int64_t multiple, int tp, int tp_rank);

}  // namespace millrace
