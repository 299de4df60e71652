#include "launch/sim/stage_cost.h"

#include <cmath>

#include "engine/model/cost.h"

namespace millrace {

namespace {

constexpr double kBytes = 2;        // of a bf16 number
constexpr double kNarrowRows = 16;  // up to here products have kernels of their own
constexpr double kReducesPerLayer = 2;

// Near the point where reading and computing take equally long, a kernel is a little slower than
// the longer of the two.
double soft_max(double a, double b) { return std::cbrt(a * a * a + b * b * b); }

}  // namespace

StageCost::StageCost(const ModelConfig& model, const Stage& stage, int tp, const Gpu& gpu)
    : gpu_(gpu),
      tp_(tp),
      num_layers_(stage.num_layers),
      layer_weights_(layer_cost(model) / tp),
      head_weights_(stage.has_head ? head_cost(model) / tp : 0),
      attention_flops_(4.0 * model.num_heads * model.head_dim / tp),
      hidden_bytes_(kBytes * model.hidden_size) {
  const HeadShard heads = shard_heads(model.num_heads, model.num_kv_heads, tp, /*tp_rank=*/0);
  layer_kv_bytes_ = 2 * kBytes * static_cast<double>(heads.kv_heads.size) * model.head_dim;
  weight_bytes_ = kBytes * (num_layers_ * layer_weights_ + head_weights_);
  const bool own_embedding = stage.has_embedding && !(stage.has_head && model.tie_embeddings);
  if (own_embedding) weight_bytes_ += kBytes * head_cost(model) / tp;
}

double StageCost::product_seconds(double rows, double num_weights) const {
  const double read = rows <= kNarrowRows ? efficiency_.narrow_read : efficiency_.wide_read;
  return soft_max(kBytes * num_weights / (gpu_.read_bytes_per_s * read),
      2 * num_weights * rows / (gpu_.flops * efficiency_.products));
}

double StageCost::reduce_seconds(const LayerWork& work) const {
  if (tp_ == 1) return 0;
  // A ring: each GPU sends every byte nearly twice.
  const double sent = 2.0 * (tp_ - 1) / tp_ * work.tokens * hidden_bytes_;
  return kReducesPerLayer * num_layers_ *
         (efficiency_.reduce_s + sent / (gpu_.link_bytes_per_s * efficiency_.reduce));
}

double StageCost::seconds(const LayerWork& work) const {
  if (work.tokens == 0) return 0;
  const double layer =
      efficiency_.layer_s + product_seconds(work.tokens, layer_weights_) +
      work.decode_keys * layer_kv_bytes_ / (gpu_.read_bytes_per_s * efficiency_.cache_read) +
      work.prefill_keys * attention_flops_ / (gpu_.flops * efficiency_.attention);
  const bool sampled = head_weights_ > 0 && work.outputs > 0;
  const double head = sampled ? efficiency_.head_s + product_seconds(work.outputs, head_weights_) +
                                    work.outputs * efficiency_.sampled_row_s
                              : 0;
  return num_layers_ * layer + head + reduce_seconds(work);
}

}  // namespace millrace
