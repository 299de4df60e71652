#include "engine/model/decoder.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace millrace {

namespace {

// Columns are dealt in these multiples: whole quantized blocks, whole vectors.
constexpr int64_t kColumnMultiple = 32;
constexpr int64_t kVocabMultiple = 4;  // ids that share a block of sampling noise

}  // namespace

AttentionShape shard_attention(const ModelConfig& config, int tp, int tp_rank) {
  const HeadShard shard = shard_heads(config.num_heads, config.num_kv_heads, tp, tp_rank);
  return {.num_heads = static_cast<int32_t>(shard.heads.size),
      .num_kv_heads = static_cast<int32_t>(shard.kv_heads.size),
      .head_dim = config.head_dim,
      .scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim)),
      .window = 0};
}

Decoder::Decoder(const Checkpoint& checkpoint, const Stage& stage, const DecoderLimits& limits,
    Ops& ops, TpOps& tp, Device& device, const std::function<void()>& on_tensor)
    : config_(checkpoint.config()), limits_(limits), ops_(ops), tp_(tp) {
  WeightLoader loader(checkpoint, device, on_tensor);
  load_layers(loader, stage);
  load_vocabulary(loader, stage);
  loader.load();
  weight_bytes_ = loader.bytes();

  rope_.interleaved = config_.rope.interleaved;
  rope_.cos_sin = device.tensor(DType::kF32, {limits.max_position, config_.head_dim}, "rope table");
  std::vector<float> table(static_cast<size_t>(rope_.cos_sin.view.count()));
  fill_rope_table(config_, limits.max_position, table.data());
  device.copy_to_device(
      rope_.cos_sin.view.data, {reinterpret_cast<const uint8_t*>(table.data()), table.size() * 4});
  allocate_workspace(stage, device);
}

void Decoder::load_layers(WeightLoader& loader, const Stage& stage) {
  const int64_t hidden = config_.hidden_size;
  const int64_t d = config_.head_dim;
  const HeadShard shard =
      shard_heads(config_.num_heads, config_.num_kv_heads, tp_.size(), tp_.rank());
  attention_shape_ = shard_attention(config_, tp_.size(), tp_.rank());
  const Range columns =
      shard_columns(config_.intermediate_size, kColumnMultiple, tp_.size(), tp_.rank());
  intermediate_ = columns.size;
  const Range all{0, hidden};
  const Range q{shard.heads.begin * d, shard.heads.size * d};
  const Range kv{shard.kv_heads.begin * d, shard.kv_heads.size * d};
  // A row-parallel linear's bias is added once: by rank 0, before the sum over ranks.
  const bool out_bias = config_.attention_bias && tp_.rank() == 0;
  const bool down_bias = config_.mlp_bias && tp_.rank() == 0;

  for (int i = stage.first_layer; i < stage.first_layer + stage.num_layers; ++i) {
    const std::string layer = fmt::format("model.layers.{}.", i);
    const std::string attention = layer + "self_attn.";
    const std::string mlp = layer + "mlp.";
    Layer made;
    made.attention_norm = loader.vector(layer + "input_layernorm.weight", all);
    made.qkv = loader.linear(
        std::vector<LinearSlice>{{attention + "q_proj", q, all, config_.attention_bias},
            {attention + "k_proj", kv, all, config_.attention_bias},
            {attention + "v_proj", kv, all, config_.attention_bias}});
    made.attention_out =
        loader.linear(std::vector<LinearSlice>{{attention + "o_proj", all, q, out_bias}});
    made.mlp_norm = loader.vector(layer + "post_attention_layernorm.weight", all);
    made.gate_up =
        loader.linear(std::vector<LinearSlice>{{mlp + "gate_proj", columns, all, config_.mlp_bias},
            {mlp + "up_proj", columns, all, config_.mlp_bias}});
    made.down =
        loader.linear(std::vector<LinearSlice>{{mlp + "down_proj", all, columns, down_bias}});
    layers_.push_back(std::move(made));
  }
}

void Decoder::load_vocabulary(WeightLoader& loader, const Stage& stage) {
  const Range all{0, config_.hidden_size};
  Range mine;
  for (int rank = 0; rank < tp_.size(); ++rank) {
    const Range shard = shard_columns(config_.vocab_size, kVocabMultiple, tp_.size(), rank);
    vocab_shards_.push_back(shard.size);
    if (rank == tp_.rank()) mine = shard;
  }
  first_vocab_id_ = static_cast<int32_t>(mine.begin);
  if (stage.has_embedding) embedding_ = loader.matrix("model.embed_tokens.weight", mine, all);
  if (stage.has_head) {
    final_norm_ = loader.vector("model.norm.weight", all);
    if (config_.tie_embeddings && stage.has_embedding) {
      head_ = embedding_;
    } else {
      head_ = loader.matrix(
          config_.tie_embeddings ? "model.embed_tokens.weight" : "lm_head.weight", mine, all);
    }
  }
}

void Decoder::allocate_workspace(const Stage& stage, Device& device) {
  const int64_t tokens = limits_.max_tokens;
  const int64_t hidden = config_.hidden_size;
  const int64_t d = config_.head_dim;
  const int64_t q = attention_shape_.num_heads * d;
  const int64_t kv = attention_shape_.num_kv_heads * d;
  const auto make_of = [&](DType dtype, std::initializer_list<int64_t> shape) {
    return device.tensor(dtype, shape, "the workspace of a step");
  };
  const auto make = [&](std::initializer_list<int64_t> shape) {
    return make_of(device.activation_dtype(), shape);
  };
  work_.normed = make({tokens, hidden});
  work_.qkv = make({tokens, q + 2 * kv});
  work_.attention = make({tokens, q});
  work_.gate_up = make({tokens, 2 * intermediate_});
  work_.activation = make({tokens, intermediate_});
  work_.projected = make({tokens, hidden});
  if (stage.has_head) {
    work_.head_rows = make({limits_.max_rows, hidden});
    work_.shard_logits =
        make_of(DType::kF32, {limits_.max_rows * vocab_shards_[static_cast<size_t>(tp_.rank())]});
    int64_t scans = 0;
    for (int64_t rows = 1; rows <= limits_.max_rows; ++rows) {
      scans = std::max(scans, rows * ops_.scan_cols(rows, largest_shard()));
    }
    work_.shard_scans = make_of(DType::kF32, {scans});
    if (tp_.size() > 1) {
      work_.logits = make_of(DType::kF32, {int64_t{limits_.max_rows} * config_.vocab_size});
      work_.scans = make_of(DType::kF32, {tp_.size() * scans});
    }
  }
}

void Decoder::embed(std::span<const int32_t> ids, const TensorView& hidden) {
  ops_.embed(ids, first_vocab_id_, embedding_.view, 1.0f, hidden);
  tp_.reduce(hidden);
}

void Decoder::forward(const TensorView& hidden, const BatchView& batch,
    std::span<const KvCacheView> caches, std::atomic<uint64_t>& progress) {
  const int64_t tokens = hidden.rows();
  CHECK(tokens == batch.num_tokens && tokens <= limits_.max_tokens, "{} rows", tokens);
  CHECK(caches.size() == layers_.size(), "{} caches for {} layers", caches.size(), layers_.size());
  const float eps = config_.rms_norm_eps;
  const TensorView normed = work_.normed.view.slice_rows(0, tokens);
  const TensorView projected = work_.projected.view.slice_rows(0, tokens);
  const TensorView activation = work_.activation.view.slice_rows(0, tokens);
  ops_.rms_norm(hidden, layers_.front().attention_norm.view, eps, normed);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    const TensorView attended = attend(layer, normed, batch, caches[i]);
    layer.attention_out.forward_add_norm(
        ops_, tp_, attended, projected, hidden, layer.mlp_norm.view, eps, normed);
    layer.gate_up.forward_gated(
        ops_, normed, Activation::kSilu, work_.gate_up.view.slice_rows(0, tokens), activation);
    const bool last = i + 1 == layers_.size();
    layer.down.forward_add_norm(ops_, tp_, activation, projected, hidden,
        last ? TensorView() : layers_[i + 1].attention_norm.view, eps, normed);
    progress.fetch_add(1, std::memory_order_relaxed);
  }
}

TensorView Decoder::attend(const Layer& layer, const TensorView& normed, const BatchView& batch,
    const KvCacheView& cache) {
  const int64_t tokens = normed.rows();
  const int64_t q_width = int64_t{attention_shape_.num_heads} * attention_shape_.head_dim;
  const int64_t kv_width = int64_t{attention_shape_.num_kv_heads} * attention_shape_.head_dim;
  const TensorView qkv = work_.qkv.view.slice_rows(0, tokens);
  const TensorView q = qkv.slice_cols(0, q_width);
  const TensorView out = work_.attention.view.slice_rows(0, tokens);
  layer.qkv.forward(ops_, normed, qkv);
  ops_.rope_kv_write(q, qkv.slice_cols(q_width, kv_width),
      qkv.slice_cols(q_width + kv_width, kv_width), HeadNorms(), rope_, attention_shape_, batch,
      cache);
  ops_.attention(q, cache, attention_shape_, batch, out);
  return out;
}

void Decoder::compute_logits(const TensorView& hidden, std::span<const int32_t> rows) {
  const auto count = static_cast<int64_t>(rows.size());
  CHECK(count <= limits_.max_rows, "{} rows of logits, room for {}", count, limits_.max_rows);
  const TensorView picked = work_.head_rows.view.slice_rows(0, count);
  ops_.gather_rows(hidden, rows, picked);
  ops_.rms_norm(picked, final_norm_.view, config_.rms_norm_eps, picked);
  ops_.linear(picked, head_.view, TensorView(), shard_logits(count));
}

TensorView Decoder::shard_logits(int64_t count) const {
  return {work_.shard_logits.view.data, DType::kF32,
      {count, vocab_shards_[static_cast<size_t>(tp_.rank())]}};
}

TensorView Decoder::gather_logits(int64_t count) {
  return tp_.gather_cols(shard_logits(count), vocab_shards_, work_.logits.view);
}

void Decoder::sample(
    std::span<const SampleRow> rows, bool needs_all, SampledRow* results, int32_t* ids) {
  const auto count = static_cast<int64_t>(rows.size());
  const int64_t cols = ops_.scan_cols(count, largest_shard());
  TensorView scans(work_.shard_scans.view.data, DType::kF32, {count, cols});
  if (cols > 0) {
    ops_.scan_logits(shard_logits(count), first_vocab_id_, rows, scans);
    const std::vector<int64_t> widths(static_cast<size_t>(tp_.size()), cols);
    scans = tp_.gather_cols(scans, widths, work_.scans.view);
  }
  needs_all = needs_all || cols == 0;
  ops_.sample(needs_all ? gather_logits(count) : TensorView(), scans, rows, results, ids);
}

}  // namespace millrace
