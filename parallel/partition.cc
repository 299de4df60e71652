#include "parallel/partition.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/base/check.h"
#include "engine/base/status.h"

namespace millrace {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Part `index` of `count` things dealt over `parts`: the first parts get the extra ones.
Range deal(int64_t count, int64_t parts, int64_t index) {
  const int64_t base = count / parts;
  const int64_t extra = count % parts;
  return {index * base + std::min(index, extra), base + (index < extra ? 1 : 0)};
}

std::vector<Stage> to_stages(std::span<const int> first_layers, int num_layers) {
  std::vector<Stage> stages;
  for (size_t s = 0; s < first_layers.size(); ++s) {
    const bool last = s + 1 == first_layers.size();
    const int end = last ? num_layers : first_layers[s + 1];
    stages.push_back({first_layers[s], end - first_layers[s], s == 0, last});
  }
  return stages;
}

void check_stage_count(int num_layers, int num_stages) {
  CHECK(num_stages >= 1, "{} stages", num_stages);
  if (num_layers >= num_stages) return;
  throw Error(ExitCode::kLayout,
      "{} layers cannot be cut into {} pipeline stages; use "
      "a --pipeline-parallel-size of {} or less",
      num_layers, num_stages, num_layers);
}

struct Cut {
  double total = kInfinity;       // combined over the stages
  std::vector<int> first_layers;  // of each stage
};

// The cut whose combined stage costs are least, by dynamic programming over (stages, layers).
// stage_cost(begin, end) is what a span costs, combine(a, b) joins two; the earliest of equals.
template <typename StageCost, typename Combine>
Cut best_cut(int num_layers, int num_stages, const StageCost& stage_cost, const Combine& combine) {
  const auto width = static_cast<size_t>(num_layers) + 1;
  // best[s][end]: stages 0..s own layers [0, end); from[s][end]: where stage s begins.
  std::vector<std::vector<double>> best(
      static_cast<size_t>(num_stages), std::vector<double>(width, kInfinity));
  std::vector<std::vector<int>> from(static_cast<size_t>(num_stages), std::vector<int>(width, 0));
  for (int end = 1; end <= num_layers; ++end) {
    best[0][static_cast<size_t>(end)] = stage_cost(0, end);
  }
  for (size_t s = 1; s < best.size(); ++s) {
    for (int end = static_cast<int>(s) + 1; end <= num_layers; ++end) {
      for (int begin = static_cast<int>(s); begin < end; ++begin) {
        const double total =
            combine(best[s - 1][static_cast<size_t>(begin)], stage_cost(begin, end));
        if (total < best[s][static_cast<size_t>(end)]) {
          best[s][static_cast<size_t>(end)] = total;
          from[s][static_cast<size_t>(end)] = begin;
        }
      }
    }
  }
  Cut cut{best.back().back(), std::vector<int>(static_cast<size_t>(num_stages))};
  int end = num_layers;
  for (size_t s = best.size(); s-- > 0;) {
    end = cut.first_layers[s] = from[s][static_cast<size_t>(end)];
  }
  return cut;
}

}  // namespace

std::vector<Stage> partition_layers(
    std::span<const double> layer_costs, double embedding_cost, double head_cost, int num_stages) {
  std::vector<double> sums(layer_costs.size() + 1);
  for (size_t i = 0; i < layer_costs.size(); ++i) {
    CHECK(layer_costs[i] >= 0 && std::isfinite(layer_costs[i]), "layer {} costs {}", i,
        layer_costs[i]);
    sums[i + 1] = sums[i] + layer_costs[i];
  }
  const auto num_layers = static_cast<int>(layer_costs.size());
  // Of a stage that holds layers [begin, end).
  const auto costs = [&](int begin, int end) {
    const double layers = sums[static_cast<size_t>(end)] - sums[static_cast<size_t>(begin)];
    return layers + (begin == 0 ? embedding_cost : 0) + (end == num_layers ? head_cost : 0);
  };
  check_stage_count(num_layers, num_stages);
  const Cut dearest =
      best_cut(num_layers, num_stages, costs, [](double a, double b) { return std::max(a, b); });
  // Many cuts have that dearest stage. Of these the most even one: the KV cache is as small as on
  // the fullest rank.
  const auto square = [&](int begin, int end) {
    const double cost = costs(begin, end);
    return cost <= dearest.total ? cost * cost : kInfinity;
  };
  const Cut even = best_cut(num_layers, num_stages, square, std::plus<>());
  return to_stages(even.first_layers, num_layers);
}

std::vector<Stage> partition_by_hand(
    std::span<const int32_t> layers_per_stage, int num_layers, int num_stages) {
  std::vector<int> first_layers;
  int64_t sum = 0;
  bool positive = true;
  for (const int32_t layers : layers_per_stage) {
    first_layers.push_back(static_cast<int>(std::min<int64_t>(sum, num_layers)));
    sum += layers;
    positive = positive && layers >= 1;
  }
  if (!positive || sum != num_layers ||
      layers_per_stage.size() != static_cast<size_t>(num_stages)) {
    throw Error(ExitCode::kLayout,
        "--pp-layers {} does not cut {} layers into {} stages; give {} positive "
        "numbers that add up to {}",
        fmt::join(layers_per_stage, ","), num_layers, num_stages, num_stages, num_layers);
  }
  return to_stages(first_layers, num_layers);
}

HeadShard shard_heads(int num_heads, int num_kv_heads, int tp, int tp_rank) {
  CHECK(num_kv_heads >= 1 && num_heads % num_kv_heads == 0 && tp_rank >= 0 && tp_rank < tp,
      "{} heads, {} KV heads, rank {} of {}", num_heads, num_kv_heads, tp_rank, tp);
  if (tp > num_heads) {
    throw Error(ExitCode::kLayout,
        "{} attention heads cannot be cut over {} ranks; "
        "use a --tensor-parallel-size of {} or less",
        num_heads, tp, num_heads);
  }
  const int64_t group = num_heads / num_kv_heads;  // query heads that read one KV head
  if (tp <= num_kv_heads) {
    const Range kv_heads = deal(num_kv_heads, tp, tp_rank);
    return {{kv_heads.begin * group, kv_heads.size * group}, kv_heads};
  }
  // Ranks are dealt to KV heads, then each head's group to its ranks.
  for (int64_t kv_head = 0; kv_head < num_kv_heads; ++kv_head) {
    const Range ranks = deal(tp, num_kv_heads, kv_head);
    if (tp_rank >= ranks.begin + ranks.size) continue;
    const Range heads = deal(group, ranks.size, tp_rank - ranks.begin);
    return {{kv_head * group + heads.begin, heads.size}, {kv_head, 1}};
  }
  CHECK(false, "rank {} of {} has no KV head", tp_rank, tp);
  return {};
}

Range shard_columns(int64_t size, int64_t multiple, int tp, int tp_rank) {
  CHECK(size >= 1 && multiple >= 1 && tp_rank >= 0 && tp_rank < tp,
      "{} columns in {}s, rank {} of "
      "{}",
      size, multiple, tp_rank, tp);
  const int64_t units = size / multiple;
  const int64_t remainder = size % multiple;
  if (units + (remainder > 0 ? 1 : 0) < tp) {
    throw Error(ExitCode::kLayout,
        "{} columns in multiples of {} cannot be cut over "
        "{} ranks; use a lower --tensor-parallel-size",
        size, multiple, tp);
  }
  const Range unit_range = deal(units, tp, tp_rank);
  return {unit_range.begin * multiple,
      unit_range.size * multiple + (tp_rank == tp - 1 ? remainder : 0)};
}

}  // namespace millrace
