// Prefill and mixed rows: a block takes 128 rows (token, head of the group) of one KV head, its
// eight warps 16 each, and goes through the keys in tiles that the next copies overtake.
#include "engine/kernels/cuda/attention.cuh"

namespace millrace::cuda {

namespace {

constexpr int kWarps = kPrefillRows / 16;
constexpr int kThreads = 32 * kWarps;
constexpr int kMaxPairs = 4;  // of a head's columns, for each lane of a warp

template <int D>
constexpr int kStages = D <= 128 ? 3 : 2;
template <int D>
constexpr int kTileElements = kPrefillKeys* kTileStride<D>;

template <typename T, int D, bool kCapped>
__global__ void __launch_bounds__(kThreads) prefill_kernel(AttentionArgs<T> a) {
  begin_kernel();
  extern __shared__ uint4 shared[];
  T* const tiles = reinterpret_cast<T*>(shared);  // k, v of each stage
  // The last tiles have the most keys: they begin first.
  const int index = a.plan->num_tiles - 1 - static_cast<int>(blockIdx.x);
  if (index < 0) return;
  const PrefillPlace at = a.place(index, blockIdx.y);
  const int kv_head = at.kv_head, first_row = at.tile.first_row, num_rows = at.num_rows;
  const int first_position = at.first_position, begin = at.begin, end = at.end;
  const int group = a.group();
  const uint32_t* table = a.block_tables[at.tile.sequence];

  const int g = threadIdx.x % 32 / 4;
  int position[2], oldest[2];
  int64_t token_row[2];
  int head[2];
  bool inside[2];
  const T* q_rows[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = first_row + threadIdx.x / 32 * 16 + g + 8 * h;
    inside[h] = row < num_rows;
    const int token = min(row, num_rows - 1) / group;
    position[h] = first_position + token;
    oldest[h] = a.first_key(position[h]);
    token_row[h] = at.first_token + token;
    head[h] = kv_head * group + row % group;
    q_rows[h] = inside[h] ? a.q + token_row[h] * a.q_stride + head[h] * D : nullptr;
  }
  WarpRows<T, D> rows;
  rows.load_q(q_rows);

  const auto load = [&](int first, int stage) {
    if (first < end) {
      T* k = tiles + 2 * stage * kTileElements<D>;
      load_tile<T, D, kPrefillKeys, kThreads>(
          a, [&](int key) { return table[key >> a.block_shift]; }, kv_head, first, end, k,
          k + kTileElements<D>, threadIdx.x);
    }
    commit_copies();
  };
  // What the whole warp sees, so that it skips and masks tiles as one.
  const int warp_first = first_row + threadIdx.x / 32 * 16;
  const int warp_begin = a.first_key(first_position + warp_first / group);
  const int warp_low = first_position + warp_first / group;
  const int warp_high = first_position + min(warp_first + 15, num_rows - 1) / group;
#pragma unroll
  for (int i = 0; i < kStages<D> - 1; ++i) load(begin + i * kPrefillKeys, i);
  for (int first = begin, stage = 0; first < end; first += kPrefillKeys) {
    wait_copies<kStages<D> - 2>();
    __syncthreads();  // the tile is there, and all have read the one before
    const int free = stage == 0 ? kStages<D> - 1 : stage - 1;
    load(first + (kStages<D> - 1) * kPrefillKeys, free);
    if (first <= warp_high && first + kPrefillKeys > warp_begin && warp_first < num_rows) {
      const T* k = tiles + 2 * stage * kTileElements<D>;
      const bool masked = first + kPrefillKeys > warp_low + 1 || first < a.first_key(warp_high);
      rows.template attend<kPrefillKeys, 2, kCapped>(a, k, k + kTileElements<D>, masked,
          {oldest[0] - first, oldest[1] - first},
          {position[0] + 1 - first, position[1] + 1 - first});
    }
    stage = stage + 1 == kStages<D> ? 0 : stage + 1;
  }
  wait_copies<0>();
  rows.finish();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (!inside[h]) continue;
    if (at.tile.num_pieces == 1) {
      rows.store(a.out + token_row[h] * a.out_stride + head[h] * D, h);
    } else {
      rows.store_partial(
          a.partial_row(at, at.tile.piece, first_row + threadIdx.x / 32 * 16 + g + 8 * h), h);
    }
  }
}

// One block a tile and KV head; the blocks of a tile's pieces share its rows, a warp takes one.
template <typename T>
__global__ void __launch_bounds__(kThreads) combine_prefill_kernel(AttentionArgs<T> a) {
  begin_kernel();
  const int index = blockIdx.x;
  if (index >= a.plan->num_tiles || a.tiles[index].num_pieces == 1) return;
  const PrefillPlace at = a.place(index, blockIdx.y);
  const int group = a.group(), lane = threadIdx.x % 32, d = a.head_dim;
  const int count = at.tile.num_pieces;
  const int end = min(at.tile.first_row + kPrefillRows, at.num_rows);
  for (int row = at.tile.first_row + at.tile.piece * kWarps + threadIdx.x / 32; row < end;
       row += count * kWarps) {
    const auto part = [&](int piece) { return a.partial_row(at, piece, row); };
    float max = -INFINITY, weight = 0;
    for (int p = lane; p < count; p += 32) max = fmaxf(max, part(p)[d]);
    max = warp_reduce(max, Max());
    float2 sums[kMaxPairs] = {};  // a lane's columns
    for (int first = 0; first < count; first += 32) {
      float scale = 0;  // of the piece first + lane
      if (first + lane < count) {
        scale = fast_exp2(part(first + lane)[d] - max);
        weight += part(first + lane)[d + 1] * scale;
      }
#pragma unroll 4
      for (int p = first; p < min(first + 32, count); ++p) {
        const float factor = __shfl_sync(0xffffffffu, scale, p - first);
        const auto* from = reinterpret_cast<const float2*>(part(p));
#pragma unroll
        for (int i = 0; i < kMaxPairs; ++i) {
          if (2 * (lane + 32 * i) >= d) break;
          const float2 value = from[lane + 32 * i];
          sums[i].x += value.x * factor, sums[i].y += value.y * factor;
        }
      }
    }
    const float divisor = 1 / warp_reduce(weight, Sum());
    auto* to = reinterpret_cast<uint32_t*>(a.out + (at.first_token + row / group) * a.out_stride +
                                           (at.kv_head * group + row % group) * d);
#pragma unroll
    for (int i = 0; i < kMaxPairs; ++i) {
      if (2 * (lane + 32 * i) >= d) break;
      to[lane + 32 * i] = pack_pair<T>(sums[i].x * divisor, sums[i].y * divisor);
    }
  }
}

}  // namespace

template <typename T>
void prefill_attention(const AttentionArgs<T>& args, int max_tiles, cudaStream_t stream) {
  dispatch_head_dim(args.head_dim, [&]<int D>() {
    constexpr int kShared = 2 * kStages<D> * kTileElements<D> * static_cast<int>(sizeof(T));
    void (*const kernel)(AttentionArgs<T>) =
        args.cap_log2 > 0 ? &prefill_kernel<T, D, true> : &prefill_kernel<T, D, false>;
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
        "shared memory of attention");
    const dim3 grid(static_cast<unsigned>(max_tiles), static_cast<unsigned>(args.num_kv_heads));
    launch("prefill attention", kernel, grid, kThreads, kShared, stream, args);
  });
}
template <typename T>
void combine_prefill(const AttentionArgs<T>& args, int max_tiles, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(max_tiles), static_cast<unsigned>(args.num_kv_heads));
  launch("combining prefill attention", combine_prefill_kernel<T>, grid, kThreads, 0, stream, args);
}
template void combine_prefill(const AttentionArgs<__half>&, int, cudaStream_t);
template void combine_prefill(const AttentionArgs<__nv_bfloat16>&, int, cudaStream_t);
template void prefill_attention(const AttentionArgs<__half>&, int, cudaStream_t);
template void prefill_attention(const AttentionArgs<__nv_bfloat16>&, int, cudaStream_t);

}  // namespace millrace::cuda
