// Decode: sequences of one token each. Keys are cut into items of equal size over all sequences and
// KV heads (Flash-Decoding, Dao et al. 2023, balanced as in Stream-K); a warp takes items in turn,
// all heads of a group at once, with a pipeline of its own. Sequences of several items are put
// together in the order of their keys.
#include <algorithm>

#include "engine/kernels/cuda/attention.cuh"

namespace millrace::cuda {

namespace {

constexpr int kStages = 3;
template <int D>
constexpr int kWarps = D <= 128 ? 8 : 4;
template <int D>
constexpr int kTileElements = kDecodeKeys* kTileStride<D>;

// One item: keys [begin, end) of a sequence for one KV head. A block's number is read a tile before
// its keys are asked for.
template <typename T, int D, int kHalves, bool kCapped>
__device__ void attend_item(const AttentionArgs<T>& a, const uint32_t* table, int kv_head,
    int begin, int end, int oldest, T* tiles, WarpRows<T, D>& rows) {
  const int lane = threadIdx.x % 32;
  const auto block_of = [&](int tile) {
    const int key = begin + tile * kDecodeKeys;
    return key < end ? table[key >> a.block_shift] : 0u;
  };
  uint32_t next_block = block_of(0);
  const auto load = [&](int tile, int stage) {
    const int first = begin + tile * kDecodeKeys;
    const uint32_t block = next_block;
    next_block = block_of(tile + 1);
    if (first < end) {
      T* k = tiles + stage * 2 * kTileElements<D>;
      load_tile<T, D, kDecodeKeys, 32>(
          a, [&](int) { return block; }, kv_head, first, end, k, k + kTileElements<D>, lane);
    }
    commit_copies();
  };
  __syncwarp();  // all have read the former item's tiles
#pragma unroll
  for (int tile = 0; tile < kStages - 1; ++tile) load(tile, tile);
  int stage = 0;
  for (int tile = 0; begin + tile * kDecodeKeys < end; ++tile) {
    wait_copies<kStages - 2>();
    __syncwarp();
    // Over the tile that all have read by now.
    load(tile + kStages - 1, stage == 0 ? kStages - 1 : stage - 1);
    const int first = begin + tile * kDecodeKeys;
    const T* k = tiles + stage * 2 * kTileElements<D>;
    const bool masked = first + kDecodeKeys > end || first < oldest;
    rows.template attend<kDecodeKeys, kHalves, kCapped>(a, k, k + kTileElements<D>, masked,
        {oldest - first, oldest - first}, {end - first, end - first});
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  wait_copies<0>();
}

template <typename T, int D, int kHalves, bool kCapped>
__global__ void __launch_bounds__(32 * kWarps<D>) decode_kernel(AttentionArgs<T> a) {
  begin_kernel();
  extern __shared__ uint4 shared[];
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4;
  T* const tiles = reinterpret_cast<T*>(shared) + warp * kStages * 2 * kTileElements<D>;
  const int group = a.group(), chunk = a.plan->chunk;
  const int total = a.plan->num_items * a.num_kv_heads;
  // Items next to each other go to different multiprocessors.
  for (int item = warp * gridDim.x + blockIdx.x; item < total; item += kWarps<D> * gridDim.x) {
    const int kv_head = item % a.num_kv_heads, place = item / a.num_kv_heads;
    int low = 0;
    for (int high = a.num_single - 1; low < high;) {  // the sequence whose items hold `place`
      const int middle = (low + high + 1) / 2;
      if (a.first_item[middle] <= place) low = middle;
      else high = middle - 1;
    }
    const int position = a.positions[low], oldest = a.first_key(position);
    const int begin = oldest / kDecodeKeys * kDecodeKeys + (place - a.first_item[low]) * chunk;
    const T* q_rows[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = g + 8 * h;
      q_rows[h] = row < group ? a.q + low * a.q_stride + (kv_head * group + row) * D : nullptr;
    }
    WarpRows<T, D> rows;
    rows.load_q(q_rows);
    attend_item<T, D, kHalves, kCapped>(a, a.block_tables[low], kv_head, begin,
        min(begin + chunk, position + 1), oldest, tiles, rows);
    rows.finish();
    const bool whole = a.first_item[low + 1] - a.first_item[low] == 1;
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      const int row = g + 8 * h;
      if (row >= group) continue;
      if (whole) {
        rows.store(a.out + low * a.out_stride + (kv_head * group + row) * D, h);
        continue;
      }
      rows.store_partial(a.partial + (int64_t{item} * group + row) * (D + 2), h);
    }
  }
}

// One block: its warps take the items of a (sequence, head) in turn, several loads under way at
// once, and warp 0 puts theirs together.
constexpr int kCombineWarps = 4;
template <typename T, int D>
__device__ void combine_items(const AttentionArgs<T>& a, int sequence, int head) {
  constexpr int kEach = (D + 31) / 32, kAtOnce = 4;
  __shared__ float shared_sums[kCombineWarps][D];
  __shared__ float2 shared_ends[kCombineWarps];
  const int first = a.first_item[sequence], count = a.first_item[sequence + 1] - first;
  if (count == 1) return;
  __syncthreads();  // the row before has been read
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = a.group();
  float sums[kEach] = {}, max = -INFINITY, weight = 0;
  // Takes up to kAtOnce (sums, end) of equal rank, of which `inside(i)` says whether they are
  // there.
  const auto add = [&](const auto& row_of, const auto& end_of, const auto& inside) {
    float2 ends[kAtOnce];
    float values[kAtOnce][kEach];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      ends[i] = inside(i) ? end_of(i) : make_float2(-INFINITY, 0);
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        values[i][j] = inside(i) && lane + 32 * j < D ? row_of(i)[lane + 32 * j] : 0;
      }
    }
    float largest = max;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) largest = fmaxf(largest, ends[i].x);
    if (largest == -INFINITY) return;
    const float rescale = exp2f(max - largest);
    weight *= rescale;
#pragma unroll
    for (int j = 0; j < kEach; ++j) sums[j] *= rescale;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float factor = exp2f(ends[i].x - largest);
      weight += ends[i].y * factor;
#pragma unroll
      for (int j = 0; j < kEach; ++j) sums[j] += values[i][j] * factor;
    }
    max = largest;
  };
  for (int base = warp; base < count; base += kCombineWarps * kAtOnce) {
    const auto row_of = [&](int i) {
      const int64_t item =
          int64_t{first + base + i * kCombineWarps} * a.num_kv_heads + head / group;
      return a.partial + (item * group + head % group) * (D + 2);
    };
    add(
        row_of, [&](int i) { return *reinterpret_cast<const float2*>(row_of(i) + D); },
        [&](int i) { return base + i * kCombineWarps < count; });
  }
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    if (lane + 32 * j < D) shared_sums[warp][lane + 32 * j] = sums[j];
  }
  if (lane == 0) shared_ends[warp] = make_float2(max, weight);
  __syncthreads();
  if (warp > 0) return;
  static_assert(kCombineWarps == kAtOnce, "all warps' sums at once");
  max = -INFINITY, weight = 0;
#pragma unroll
  for (int j = 0; j < kEach; ++j) sums[j] = 0;
  add([&](int i) { return shared_sums[i]; }, [&](int i) { return shared_ends[i]; },
      [](int) { return true; });
  T* to = a.out + sequence * a.out_stride + head * D;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (lane + 32 * i < D) to[lane + 32 * i] = from_float<T>(sums[i] / weight);
  }
}
template <typename T, int D>
__global__ void __launch_bounds__(32 * kCombineWarps) combine_kernel(AttentionArgs<T> a) {
  begin_kernel();
  if (a.plan->split == 0) return;
  const int rows = a.num_single * a.num_heads;
  for (int row = blockIdx.x; row < rows; row += gridDim.x) {
    combine_items<T, D>(a, row / a.num_heads, row % a.num_heads);
  }
}

}  // namespace

template <typename T>
void decode_attention(const AttentionArgs<T>& args, int num_sms, cudaStream_t stream) {
  dispatch_head_dim(args.head_dim, [&]<int D>() {
    constexpr int kShared =
        kWarps<D> * kStages * 2 * kTileElements<D> * static_cast<int>(sizeof(T));
    void (*const kernel)(AttentionArgs<T>) = args.cap_log2 > 0 ? &decode_kernel<T, D, 2, true>
                                             : args.num_heads / args.num_kv_heads <= 8
                                                 ? &decode_kernel<T, D, 1, false>
                                                 : &decode_kernel<T, D, 2, false>;
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
        "shared memory of attention");
    launch("decode attention", kernel, static_cast<unsigned>(num_sms), 32 * kWarps<D>, kShared,
        stream, args);
    launch("combining decode attention", combine_kernel<T, D>,
        static_cast<unsigned>(std::min(args.num_single * args.num_heads, 16 * num_sms)),
        32 * kCombineWarps, 0, stream, args);
  });
}
template void decode_attention(const AttentionArgs<__half>&, int, cudaStream_t);
template void decode_attention(const AttentionArgs<__nv_bfloat16>&, int, cudaStream_t);

}  // namespace millrace::cuda
