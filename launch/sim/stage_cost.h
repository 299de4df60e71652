// How long a stage takes for a step, from what it reads and computes. Pure; any thread.
#pragma once

#include "engine/model/config.h"
#include "launch/sim/gpu.h"
#include "parallel/partition.h"

namespace millrace {

// What a plan asks of every layer, and of the head.
struct LayerWork {
  double tokens = 0;
  double decode_keys = 0;   // summed context of rows of one token: what their attention reads
  double prefill_keys = 0;  // keys seen, summed over the tokens of longer rows
  double decode_rows = 0;   // rows of one token
  double outputs = 0;       // rows that are sampled
  bool has_decode = false;  // a row's input is sampled, not a prompt's
};

// One stage of `tp` GPUs of one host, weights and cache in bf16.
class StageCost {
 public:
  StageCost(const ModelConfig& model, const Stage& stage, int tp, const Gpu& gpu);

  // From the arrival of the hidden states to their departure, or to the sampled ids.
  double seconds(const LayerWork& work) const;
  // Of it: the all-reduces of tensor parallelism.
  double reduce_seconds(const LayerWork& work) const;

  // Per GPU.
  double weight_bytes() const { return weight_bytes_; }
  double kv_bytes_per_token() const { return num_layers_ * layer_kv_bytes_; }

 private:
  double product_seconds(double rows, double num_weights) const;

  const Gpu& gpu_;
  const Efficiency efficiency_;
  int tp_;
  double num_layers_;
  // Per GPU.
  double layer_weights_;    // numbers, of the products of a layer
  double head_weights_;     // 0 but on the last stage
  double layer_kv_bytes_;   // of the cache, a token and layer
  double attention_flops_;  // a token, key and layer
  double hidden_bytes_;     // of a token
  double weight_bytes_;     // held: the embedding too
};

}  // namespace millrace
