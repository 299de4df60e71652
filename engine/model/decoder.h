// One stage of a decoder-only transformer on one tensor-parallel rank: weights, workspace, and the
// forward pass written once for all families of this shape. Owned by the worker; compute thread
// only. It knows neither ranks of other stages nor how hidden states travel.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "engine/core/device.h"
#include "engine/kernels/ops.h"
#include "engine/model/checkpoint.h"
#include "engine/model/families.h"
#include "engine/model/weights.h"
#include "parallel/partition.h"
#include "parallel/tp_ops.h"

namespace millrace {

struct DecoderLimits {
  int32_t max_tokens = 0;    // of a step
  int32_t max_rows = 0;      // of a step that need logits
  int32_t max_position = 0;  // longest sequence
};

// The heads of one tensor-parallel rank.
AttentionShape shard_attention(const ModelConfig& config, int tp, int tp_rank);
// The MLP's columns are dealt to ranks in multiples of this: whole blocks of every down_proj where
// each rank still gets some, else of 32 (a split block then widens that tensor).
int64_t column_multiple(const Checkpoint& checkpoint, int tp);

class Decoder {
 public:
  struct Layer {
    Tensor attention_norm;  // f32 [H]; this and the other norms: empty where the family has none
    Linear qkv;             // H -> (Hq + 2 Hkv) * D
    Tensor q_norm, k_norm;  // f32 [D], or [Hq * D] and [Hkv * D]
    Linear attention_out;   // Hq * D -> H, row-parallel
    Tensor attention_post;  // f32 [H]
    Tensor mlp_norm;        // f32 [H]
    Linear gate_up;         // H -> 2 I
    Linear down;            // I -> H, row-parallel
    Tensor mlp_post;        // f32 [H]
    LayerConfig config;
  };

  // Loads this rank's slices. `ops`, `tp` and `device` outlive it. Throws Error. `on_tensor` is
  // called after each tensor, from the loader's threads.
  Decoder(const Checkpoint& checkpoint, const Stage& stage, const DecoderLimits& limits, Ops& ops,
      TpOps& tp, Device& device, const std::function<void()>& on_tensor);

  // hidden: act [T, H], written. Only where the stage has the embedding.
  void embed(std::span<const int32_t> ids, const TensorView& hidden);
  // hidden: act [T, H], in place through this stage's layers. caches: one per layer of the stage.
  // `progress` ticks once per layer.
  void forward(const TensorView& hidden, const BatchView& batch,
      std::span<const KvCacheView> caches, std::atomic<uint64_t>& progress);
  // This rank's logits of the given rows (on the device) of hidden. Here and below: only where the
  // stage has the head.
  void compute_logits(const TensorView& hidden, std::span<const int32_t> rows);
  // Of all ranks, the first `count` rows of what the last call computed: f32 [count, V].
  TensorView gather_logits(int64_t count);
  // Ops::sample of the first rows of what it computed; the same on every rank. needs_all: some row
  // needs_all_logits(); else ranks exchange what they know of their shards alone.
  void sample(std::span<const SampleRow> rows, bool needs_all, SampledRow* results, int32_t* ids);

  // Of all layers, but that some may have no window.
  const AttentionShape& attention_shape() const { return attention_shape_; }
  Activation activation() const { return family_.activation; }
  int32_t num_layers() const { return static_cast<int32_t>(layers_.size()); }
  int64_t hidden_size() const { return config_.hidden_size; }
  int64_t weight_bytes() const { return weight_bytes_; }
  int64_t quantized_cols() const { return quantized_cols_; }  // of the widest such matrix
  // For measuring them one by one.
  std::span<const Layer> layers() const { return layers_; }
  const TensorView& head() const { return head_.view; }  // [V / tp, H]; empty without the head
  const RopeTable& rope() const { return rope_; }
  int64_t vocab_size() const { return config_.vocab_size; }

 private:
  // Of one step, T rows each; allocated once for limits.max_tokens.
  struct Workspace {
    Tensor normed;        // act [T, H]
    Tensor qkv;           // act [T, (Hq + 2 Hkv) * D]
    Tensor attention;     // act [T, Hq * D]
    Tensor gate_up;       // act [T, 2 I]
    Tensor activation;    // act [T, I]
    Tensor projected;     // act [T, H]: what a row-parallel linear gave
    Tensor head_rows;     // act [R, H]
    Tensor shard_logits;  // f32 [R * V / tp]
    Tensor logits;        // f32 [R * V], of all ranks
    Tensor squares;       // f32 [T, 2], of norms over the columns of all ranks
    Tensor shard_scans;   // f32 [R * scan_cols]
    Tensor scans;         // f32 [R * tp * scan_cols]
  };

  // Some outputs of a column-parallel linear: their name where they are a tensor of their own and
  // that of the tensor where they lie beside others; this rank's rows of them, and all.
  struct ColumnPart {
    std::string_view name, fused;
    Range mine;
    int64_t all;
  };
  std::vector<LinearSlice> side_by_side(
      const std::string& prefix, std::span<const ColumnPart> parts, bool with_bias) const;
  Layer load_layer(WeightLoader& loader, int index) const;
  RopeTable make_rope(const RopeConfig& rope, Device& device) const;
  void load_vocabulary(WeightLoader& loader, const Stage& stage);
  TensorView shard_logits(int64_t count) const;
  int64_t largest_shard() const { return std::ranges::max(vocab_shards_); }
  void allocate_workspace(const Stage& stage, Device& device);
  const RopeTable& rope(LayerRope kind) const {
    return kind == LayerRope::kMain ? rope_ : kind == LayerRope::kLocal ? local_rope_ : no_rope_;
  }
  // What the heads give: act [T, Hq * D], in the workspace.
  TensorView attend(const Layer& layer, const TensorView& input, const BatchView& batch,
      const KvCacheView& cache);

  ModelConfig config_;
  const Family& family_;
  DecoderLimits limits_;
  Ops& ops_;
  TpOps& tp_;
  AttentionShape attention_shape_;
  HeadShard heads_;
  bool copies_kv_;                     // an earlier rank holds the same KV heads
  Range columns_;                      // this rank's share of I
  std::vector<int64_t> vocab_shards_;  // rows of each tensor-parallel rank
  int32_t first_vocab_id_ = 0;         // of this rank
  std::vector<Layer> layers_;
  Tensor embedding_;  // [V / tp, H]
  Tensor head_;       // the same tensor where tied and both are here
  Tensor final_norm_;
  float embedding_scale_ = 1;
  RopeTable rope_;
  RopeTable local_rope_;  // empty where no layer uses it
  RopeTable no_rope_;
  Workspace work_;
  int64_t weight_bytes_ = 0, quantized_cols_ = 0;
};

}  // namespace millrace
