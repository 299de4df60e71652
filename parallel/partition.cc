#include "parallel/partition.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "engine/base/check.h"
#include "engine/base/status.h"

namespace millrace {

namespace {

// `total` over `parts`, the first ones one larger: part `index`.
Range deal(int64_t total, int64_t parts, int64_t index) {
  const int64_t each = total / parts;
  const int64_t extra = total % parts;
  return {index * each + std::min(index, extra), each + (index < extra ? 1 : 0)};
}

std::vector<Stage> stages_of(std::span<const int32_t> layers_per_stage) {
  std::vector<Stage> stages;
  int first = 0;
  for (const int32_t count : layers_per_stage) {
    stages.push_back({first, count, /*has_embedding=*/false, /*has_head=*/false});
    first += count;
  }
  stages.front().has_embedding = true;
  stages.back().has_head = true;
  return stages;
}

}  // namespace

std::vector<Stage> partition_layers(std::span<const double> layer_costs, double embedding_cost,
                                    double head_cost, int num_stages) {
  const auto num_layers = static_cast<int>(layer_costs.size());
  if (num_stages < 1 || num_layers < num_stages) {
    throw Error(ExitCode::kLayout,
                fmt::format("{} layers cannot be cut into {} stages: use a lower "
                            "--pipeline-parallel-size",
                            num_layers, num_stages));
  }
  std::vector<double> prefix(layer_costs.size() + 1, 0.0);
  std::partial_sum(layer_costs.begin(), layer_costs.end(), prefix.begin() + 1);
  const auto stage_cost = [&](int stage, int begin, int end) {
    return prefix[static_cast<size_t>(end)] - prefix[static_cast<size_t>(begin)] +
           (stage == 0 ? embedding_cost : 0.0) + (stage == num_stages - 1 ? head_cost : 0.0);
  };
  // best[s][n]: the dearest stage of the best cut of the first n layers into s + 1 stages.
  const auto width = static_cast<size_t>(num_layers) + 1;
  std::vector<std::vector<double>> best(
      static_cast<size_t>(num_stages),
      std::vector<double>(width, std::numeric_limits<double>::infinity()));
  std::vector<std::vector<int>> cut(static_cast<size_t>(num_stages), std::vector<int>(width, 0));
  for (int n = 1; n <= num_layers; ++n) best[0][static_cast<size_t>(n)] = stage_cost(0, 0, n);
  for (int s = 1; s < num_stages; ++s) {
    for (int n = s + 1; n <= num_layers; ++n) {
      for (int begin = s; begin < n; ++begin) {
        const double dearest = std::max(
            best[static_cast<size_t>(s) - 1][static_cast<size_t>(begin)], stage_cost(s, begin, n));
        if (dearest < best[static_cast<size_t>(s)][static_cast<size_t>(n)]) {
          best[static_cast<size_t>(s)][static_cast<size_t>(n)] = dearest;
          cut[static_cast<size_t>(s)][static_cast<size_t>(n)] = begin;
        }
      }
    }
  }
  std::vector<int32_t> counts(static_cast<size_t>(num_stages));
  for (int s = num_stages - 1, end = num_layers; s >= 0; --s) {
    const int begin = cut[static_cast<size_t>(s)][static_cast<size_t>(end)];
    counts[static_cast<size_t>(s)] = end - begin;
    end = begin;
  }
  return stages_of(counts);
}

std::vector<Stage> partition_by_hand(std::span<const int32_t> layers_per_stage, int num_layers,
                                     int num_stages) {
  const bool positive = std::all_of(layers_per_stage.begin(), layers_per_stage.end(),
                                    [](int32_t n) { return n > 0; });
  const int64_t sum = std::accumulate(layers_per_stage.begin(), layers_per_stage.end(), int64_t{0});
  if (static_cast<int>(layers_per_stage.size()) != num_stages || !positive || sum != num_layers) {
    throw Error(ExitCode::kLayout,
                fmt::format("--pp-layers gives {} numbers that add up to {}; it needs {} positive "
                            "numbers that add up to the model's {} layers",
                            layers_per_stage.size(), sum, num_stages, num_layers));
  }
  return stages_of(layers_per_stage);
}

HeadShard shard_heads(int num_heads, int num_kv_heads, int tp, int tp_rank) {
  CHECK(num_kv_heads > 0 && num_heads % num_kv_heads == 0 && tp_rank >= 0 && tp_rank < tp);
  if (tp > num_heads) {
    throw Error(ExitCode::kLayout, fmt::format("{} attention heads cannot be dealt to {} ranks: "
                                               "use a lower --tensor-parallel-size",
                                               num_heads, tp));
  }
  const int64_t group = num_heads / num_kv_heads;  // query heads that read one KV head
  if (tp <= num_kv_heads) {
    const Range kv = deal(num_kv_heads, tp, tp_rank);
    return {{kv.begin * group, kv.size * group}, kv};
  }
  // More ranks than KV heads: ranks are dealt to KV heads, then each head's queries to its ranks.
  for (int64_t head = 0; head < num_kv_heads; ++head) {
    const Range ranks = deal(tp, num_kv_heads, head);
    if (tp_rank >= ranks.begin + ranks.size) continue;
    const Range queries = deal(group, ranks.size, tp_rank - ranks.begin);
    if (queries.size == 0) break;
    return {{head * group + queries.begin, queries.size}, {head, 1}};
  }
  throw Error(ExitCode::kLayout,
              fmt::format("{} query heads in {} groups cannot be dealt to {} ranks: use a lower "
                          "--tensor-parallel-size",
                          num_heads, num_kv_heads, tp));
}

Range shard_columns(int64_t size, int64_t multiple, int tp, int tp_rank) {
  CHECK(size > 0 && multiple > 0 && tp_rank >= 0 && tp_rank < tp);
  const int64_t units = (size + multiple - 1) / multiple;
  if (units < tp) {
    throw Error(
        ExitCode::kLayout,
        fmt::format("{} columns in multiples of {} cannot be dealt to {} ranks: use a lower "
                    "--tensor-parallel-size",
                    size, multiple, tp));
  }
  const Range dealt = deal(units, tp, tp_rank);
  const int64_t begin = dealt.begin * multiple;
  return {begin, std::min(begin + dealt.size * multiple, size) - begin};
}

}  // namespace millrace
