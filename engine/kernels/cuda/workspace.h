// What the kernels ask of a GPU's memory beside the tensors of their callers: plain arithmetic,
// free of CUDA, so that memory can be planned on a host without it.
#pragma once

#include "engine/kernels/ops.h"

namespace millrace::cuda {

// Of products, each stream's: cuBLASLt's, and the own kernels' sums and counters.
constexpr int64_t kGemmWorkspaceBytes = int64_t{64} << 20;
constexpr int kStreamTileRows = 128, kStreamMaxCols = 128, kStreamMaxTiles = 16384,
              kStreamMaxBlocks = 256;
constexpr int64_t stream_workspace_bytes() {
  return kStreamMaxTiles * int64_t{4} +
         int64_t{2} * kStreamMaxBlocks * kStreamTileRows * kStreamMaxCols * 4;
}

struct AttentionLimits {
  AttentionShape shape;  // its window: that of the layers that have one
  DType act = DType::kBF16;
  int32_t max_sequences = 0;  // S
  int32_t max_tokens = 0;     // T
  int32_t num_sms = 0;
};

// How one step is cut for layers of one window, made on the device by plan_attention.
struct AttentionPlan {
  int32_t chunk;      // keys of a decode item, a multiple of kDecodeKeys
  int32_t num_items;  // of decode, for one KV head
  int32_t num_tiles;  // of prefill, for one KV head: pieces of keys of 128 rows
  int32_t piece;      // keys of such a piece, a multiple of kPieceKeys
  int32_t split;      // some sequence has several items
};
// One block's work in prefill: rows of a sequence against all their keys, or, where there would be
// fewer blocks than multiprocessors, a piece of them.
struct PrefillTile {
  int32_t sequence, first_row;
  int32_t piece, num_pieces;
  int32_t partial;  // the place of its first piece in tile_partial
};
constexpr int kPrefillRows = 128;  // (token, head of the group) pairs of a prefill tile
constexpr int kItemsPerWarp = 3;   // decode items are cut so small that all warps end together

// Warps of the decode kernel's grid, of which the plan makes use.
constexpr int decode_warps(int head_dim, int num_sms) {
  return num_sms * (head_dim <= 128 ? 8 : 4);
}
// Pieces are at least as long as a multiprocessor's fair share of all keys: cutting makes at most
// so many more tiles of one KV head, and rows that are cut have at most twice as many.
constexpr int most_pieces(int num_sms, int num_kv_heads) {
  return (num_sms + num_kv_heads - 1) / num_kv_heads;
}
// One for layers that see all keys, and one for those with a window where the model has them.
constexpr int num_plans(const AttentionShape& shape) { return shape.window > 0 ? 2 : 1; }

// Where things lie in attention's workspace, in bytes.
struct AttentionLayout {
  constexpr explicit AttentionLayout(const AttentionLimits& l) {
    const AttentionShape& shape = l.shape;
    const int64_t group = shape.num_heads / shape.num_kv_heads;
    const int64_t pieces = most_pieces(l.num_sms, shape.num_kv_heads);
    const int64_t max_tiles = l.max_tokens * group / kPrefillRows + l.max_sequences + pieces;
    tiles = aligned(sizeof(AttentionPlan));
    first_item = tiles + aligned(max_tiles * int64_t{sizeof(PrefillTile)});
    plan_bytes = first_item + aligned((l.max_sequences + 1) * int64_t{4});
    partial = plan_bytes * num_plans(shape);
    const int64_t items = int64_t{kItemsPerWarp} * decode_warps(shape.head_dim, l.num_sms) +
                          int64_t{l.max_sequences} * shape.num_kv_heads;
    tile_partial = partial + aligned(items * group * (shape.head_dim + 2) * 4);
    end = tile_partial +
          aligned(2 * pieces * shape.num_kv_heads * kPrefillRows * (shape.head_dim + 2) * 4);
  }
  static constexpr int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }
  // A plan's parts, counted from its own begin; plan i begins at i * plan_bytes.
  int64_t tiles, first_item, plan_bytes;
  int64_t partial, tile_partial, end;
};

}  // namespace millrace::cuda
