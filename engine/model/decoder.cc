#include "engine/model/decoder.h"

#include <fmt/format.h>

#include <array>
#include <cmath>

namespace millrace {

namespace {

// Columns are dealt at least in these multiples: whole vectors, whole blocks of most types.
constexpr int64_t kColumnMultiple = 32;
constexpr int64_t kVocabMultiple = 4;  // ids that share a block of sampling noise

float rounded(float value, DType dtype) {
  uint8_t bytes[4];
  narrow({&value, 1}, dtype, bytes);
  widen_rows(TensorView(bytes, dtype, {1}), &value);
  return value;
}

}  // namespace

AttentionShape shard_attention(const ModelConfig& config, int tp, int tp_rank) {
  const HeadShard shard = shard_heads(config.num_heads, config.num_kv_heads, tp, tp_rank);
  int32_t window = 0;
  for (const LayerConfig& layer : config.layers) window = std::max(window, layer.window);
  return {.num_heads = static_cast<int32_t>(shard.heads.size),
      .num_kv_heads = static_cast<int32_t>(shard.kv_heads.size),
      .head_dim = config.head_dim,
      .scale = config.attention_scale > 0 ? config.attention_scale
                                          : 1.0f / std::sqrt(static_cast<float>(config.head_dim)),
      .window = window,
      .softcap = config.attention_softcap};
}

int64_t column_multiple(const Checkpoint& checkpoint, int tp) {
  const ModelConfig& config = checkpoint.config();
  int64_t multiple = kColumnMultiple;
  for (int i = 0; i < config.num_layers; ++i) {
    const TensorInfo* down =
        checkpoint.find(fmt::format("model.layers.{}.mlp.down_proj.weight", i));
    if (down == nullptr) continue;
    multiple = std::max<int64_t>(multiple, dtype_info(down->dtype).block_size);
  }
  return config.intermediate_size / multiple >= tp ? multiple : kColumnMultiple;
}

Decoder::Decoder(const Checkpoint& checkpoint, const Stage& stage, const DecoderLimits& limits,
    Ops& ops, TpOps& tp, Device& device, const std::function<void()>& on_tensor)
    : config_(checkpoint.config()),
      family_(family_of(config_)),
      limits_(limits),
      ops_(ops),
      tp_(tp),
      attention_shape_(shard_attention(config_, tp.size(), tp.rank())),
      heads_(shard_heads(config_.num_heads, config_.num_kv_heads, tp.size(), tp.rank())),
      copies_kv_(tp.rank() > 0 &&
                 shard_heads(config_.num_heads, config_.num_kv_heads, tp.size(), tp.rank() - 1)
                         .kv_heads.begin == heads_.kv_heads.begin),
      columns_(shard_columns(config_.intermediate_size, column_multiple(checkpoint, tp.size()),
          tp.size(), tp.rank())) {
  WeightLoader loader(checkpoint, device, on_tensor);
  for (int i = 0; i < stage.num_layers; ++i) {
    layers_.push_back(load_layer(loader, stage.first_layer + i));
  }
  load_vocabulary(loader, stage);
  if (!device.only_counts()) {
    loader.load();
    for (const TensorView& matrix : loader.matrices()) ops.pack_weights(matrix);
  }
  weight_bytes_ = loader.bytes();
  for (const TensorView& matrix : loader.matrices()) {
    if (is_quantized(matrix.dtype)) quantized_cols_ = std::max(quantized_cols_, matrix.cols());
  }

  // As transformers does, which multiplies by the factor in the model's dtype.
  embedding_scale_ = rounded(config_.embedding_scale, device.activation_dtype());
  rope_ = make_rope(config_.rope, device);
  if (std::ranges::any_of(
          layers_, [](const Layer& l) { return l.config.rope == LayerRope::kLocal; })) {
    local_rope_ = make_rope(config_.local_rope, device);
  }
  allocate_workspace(stage, device);
}

RopeTable Decoder::make_rope(const RopeConfig& rope, Device& device) const {
  RopeTable made;
  made.interleaved = rope.interleaved;
  made.cos_sin = device.tensor(DType::kF32, {limits_.max_position, rope.dim}, "rope table");
  if (device.only_counts()) return made;
  std::vector<float> table(static_cast<size_t>(made.cos_sin.view.count()));
  fill_rope_table(rope, limits_.max_position, table.data());
  device.copy_to_device(
      made.cos_sin.view.data, {reinterpret_cast<const uint8_t*>(table.data()), table.size() * 4});
  return made;
}

// The rows of `parts`, which a checkpoint holds one after another in one tensor ("fused") or each
// in its own.
std::vector<LinearSlice> Decoder::side_by_side(
    const std::string& prefix, std::span<const ColumnPart> parts, bool with_bias) const {
  std::vector<LinearSlice> slices;
  int64_t before = 0;
  for (const ColumnPart& part : parts) {
    const std::string_view name = family_.fused_projections ? part.fused : part.name;
    Range rows = part.mine;
    if (family_.fused_projections) rows.begin += before;
    before += part.all;
    slices.push_back(
        {fmt::format("{}{}", prefix, name), rows, {0, config_.hidden_size}, with_bias});
  }
  return slices;
}

Decoder::Layer Decoder::load_layer(WeightLoader& loader, int index) const {
  const int64_t d = config_.head_dim;
  const Range all{0, config_.hidden_size};
  const Range q{heads_.heads.begin * d, heads_.heads.size * d};
  const Range kv{heads_.kv_heads.begin * d, heads_.kv_heads.size * d};
  // A row-parallel linear's bias is added once: by rank 0, before the sum over ranks.
  const bool out_bias = config_.attention_bias && !family_.qkv_bias && tp_.rank() == 0;
  const bool down_bias = config_.mlp_bias && tp_.rank() == 0;
  const std::string layer = fmt::format("model.layers.{}.", index);
  const float plus = config_.norms_plus_one ? 1 : 0;
  const auto norm = [&](std::string_view name, Range range) {
    return name.empty() ? Tensor()
                        : loader.vector(fmt::format("{}{}.weight", layer, name), range, plus);
  };
  const int64_t kv_columns = config_.num_kv_heads * d, inner = config_.intermediate_size;
  Layer made;
  made.config = config_.layers[static_cast<size_t>(index)];
  made.attention_norm = norm(family_.norms.attention, all);
  made.qkv = loader.linear(side_by_side(layer + "self_attn.",
      std::array{ColumnPart{"q_proj", "qkv_proj", q, config_.num_heads * d},
          ColumnPart{"k_proj", "qkv_proj", kv, kv_columns},
          ColumnPart{"v_proj", "qkv_proj", kv, kv_columns}},
      config_.attention_bias));
  if (family_.qk_norm != QkNorm::kNone) {
    const bool whole = family_.qk_norm == QkNorm::kWhole;
    made.q_norm = norm("self_attn.q_norm", whole ? q : Range{0, d});
    made.k_norm = norm("self_attn.k_norm", whole ? kv : Range{0, d});
  }
  made.attention_out =
      loader.linear(std::vector<LinearSlice>{{layer + "self_attn.o_proj", all, q, out_bias}});
  made.attention_post = norm(family_.norms.attention_post, all);
  made.mlp_norm = norm(family_.norms.mlp, all);
  made.gate_up = loader.linear(side_by_side(layer + "mlp.",
      std::array{ColumnPart{"gate_proj", "gate_up_proj", columns_, inner},
          ColumnPart{"up_proj", "gate_up_proj", columns_, inner}},
      config_.mlp_bias));
  made.down =
      loader.linear(std::vector<LinearSlice>{{layer + "mlp.down_proj", all, columns_, down_bias}});
  made.mlp_post = norm(family_.norms.mlp_post, all);
  return made;
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
    final_norm_ = loader.vector("model.norm.weight", all, config_.norms_plus_one ? 1 : 0);
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
  work_.gate_up = make({tokens, 2 * columns_.size});
  work_.activation = make({tokens, columns_.size});
  work_.projected = make({tokens, hidden});
  if (family_.qk_norm == QkNorm::kWhole) work_.squares = make_of(DType::kF32, {tokens, 2});
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
  ops_.embed(ids, first_vocab_id_, embedding_.view, embedding_scale_, hidden);
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
  // Where blocks have no norm before them, they read the hidden state itself.
  const TensorView& input = family_.norms.attention.empty() ? hidden : normed;
  if (input.data == normed.data) {
    ops_.rms_norm(hidden, layers_.front().attention_norm.view, eps, normed);
  }
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    const TensorView attended = attend(layer, input, batch, caches[i]);
    layer.attention_out.forward_add_norm(ops_, tp_, attended, projected, hidden,
        layer.attention_post.view, layer.mlp_norm.view, eps, normed);
    layer.gate_up.forward_gated(
        ops_, input, family_.activation, work_.gate_up.view.slice_rows(0, tokens), activation);
    const bool last = i + 1 == layers_.size();
    layer.down.forward_add_norm(ops_, tp_, activation, projected, hidden, layer.mlp_post.view,
        last ? TensorView() : layers_[i + 1].attention_norm.view, eps, normed);
    progress.fetch_add(1, std::memory_order_relaxed);
  }
}

TensorView Decoder::attend(
    const Layer& layer, const TensorView& input, const BatchView& batch, const KvCacheView& cache) {
  const int64_t tokens = input.rows();
  const float eps = config_.rms_norm_eps;
  const int64_t q_width = int64_t{attention_shape_.num_heads} * attention_shape_.head_dim;
  const int64_t kv_width = int64_t{attention_shape_.num_kv_heads} * attention_shape_.head_dim;
  const TensorView qkv = work_.qkv.view.slice_rows(0, tokens);
  const TensorView q = qkv.slice_cols(0, q_width);
  const TensorView k = qkv.slice_cols(q_width, kv_width);
  const TensorView v = qkv.slice_cols(q_width + kv_width, kv_width);
  const TensorView out = work_.attention.view.slice_rows(0, tokens);
  layer.qkv.forward(ops_, input, qkv);
  HeadNorms norms;
  if (family_.qk_norm == QkNorm::kPerHead) {
    norms = {.q = layer.q_norm.view, .k = layer.k_norm.view, .eps = eps};
  } else if (family_.qk_norm == QkNorm::kWhole) {
    const int64_t d = config_.head_dim;
    const TpOps::SharedNorm shared[] = {{q, layer.q_norm.view, config_.num_heads * d},
        {k, layer.k_norm.view, config_.num_kv_heads * d, copies_kv_}};
    tp_.norm_shared(ops_, shared, eps, work_.squares.view.slice_rows(0, tokens));
  }
  AttentionShape shape = attention_shape_;
  shape.window = layer.config.window;
  ops_.rope_kv_write(q, k, v, norms, rope(layer.config.rope), shape, batch, cache);
  ops_.attention(q, cache, shape, batch, out);
  return out;
}

void Decoder::compute_logits(const TensorView& hidden, std::span<const int32_t> rows) {
  const auto count = static_cast<int64_t>(rows.size());
  CHECK(count <= limits_.max_rows, "{} rows of logits, room for {}", count, limits_.max_rows);
  const TensorView picked = work_.head_rows.view.slice_rows(0, count);
  ops_.gather_rows(hidden, rows, picked);
  ops_.rms_norm(picked, final_norm_.view, config_.rms_norm_eps, picked);
  ops_.linear(picked, head_.view, TensorView(), shard_logits(count));
  if (config_.logit_softcap > 0) ops_.soft_cap(shard_logits(count), config_.logit_softcap);
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
