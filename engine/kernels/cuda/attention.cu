// The plan of a step's attention, the choice of kernels, and the plain kernel for what the tensor
// core kernels do not take (fp32, other head sizes).
#include <algorithm>
#include <bit>
#include <cmath>
#include <cub/block/block_scan.cuh>

#include "engine/kernels/cuda/attention.cuh"

namespace millrace::cuda {

namespace {

constexpr int kPlanThreads = 1024;
constexpr int kMaxPlainDim = 512;

bool on_tensor_cores(DType act, const AttentionShape& shape) {
  constexpr int kDims[] = {64, 80, 96, 128, 256};
  return act != DType::kF32 && shape.num_heads / shape.num_kv_heads <= 16 &&
         std::find(std::begin(kDims), std::end(kDims), shape.head_dim) != std::end(kDims);
}

// running[0] grows by the sum of value(i) over i in [0, count); store(i, what came before i).
template <typename Value, typename Store>
__device__ int scan(int count, const Value& value, const Store& store) {
  using Scan = cub::BlockScan<int, kPlanThreads>;
  __shared__ typename Scan::TempStorage storage;
  int running = 0;
  for (int base = 0; base < count; base += kPlanThreads) {
    const int i = base + static_cast<int>(threadIdx.x);
    int before = 0, total = 0;
    Scan(storage).ExclusiveSum(i < count ? value(i) : 0, before, total);
    if (i < count) store(i, running + before);
    running += total;
    __syncthreads();
  }
  return running;
}

// Keys of a decode item. Whole sequences, whose parts nobody has to put together, where that keeps
// all multiprocessors equally busy: the longest has to end in time with them, alone in its warp,
// which reaches about 0.4 of a multiprocessor's share of the bandwidth. Else equal pieces.
__device__ int decode_chunk(
    int64_t keys, int longest, int num_single, int num_kv_heads, int warps, int num_sms) {
  const int items = num_single * num_kv_heads;
  const int64_t fair = keys * num_kv_heads / num_sms;
  const int64_t busiest = (items + num_sms - 1) / num_sms * (keys / max(num_single, 1));
  const int64_t whole = max(busiest, int64_t{longest} * 5 / 2);
  const int64_t pieces = int64_t{kItemsPerWarp} * warps;
  const int64_t wanted =
      whole * 100 <= fair * 115 ? longest : (keys * num_kv_heads + pieces - 1) / pieces;
  return max(
      4 * kDecodeKeys, static_cast<int>((wanted + kDecodeKeys - 1) / kDecodeKeys) * kDecodeKeys);
}

// The tiles of the sequences that have several tokens. Keys are cut where the rows alone would keep
// few multiprocessors busy: a short chunk far into a long prompt.
__device__ void plan_tiles(const BatchView& batch, int num_sequences, int group, int num_kv_heads,
    int window, int num_sms, AttentionPlan* plan, int32_t* first_partial, PrefillTile* tiles) {
  const int num_single = batch.num_single, count = num_sequences - num_single;
  const int32_t* cu_tokens = batch.cu_tokens.data();
  const auto each_tile = [&](int i, const auto& body) {  // body(first row, its keys)
    const int s = num_single + i, position = batch.positions.data()[cu_tokens[s]];
    const int rows = (cu_tokens[s + 1] - cu_tokens[s]) * group;
    for (int row = 0; row < rows; row += kPrefillRows) {
      const int first = position + row / group, last = min(row + kPrefillRows, rows) - 1;
      const int oldest = window > 0 && first >= window ? first - window + 1 : 0;
      body(row, position + last / group + 1 - oldest / kPrefillKeys * kPrefillKeys);
    }
  };
  const auto sum = [&](int i, const auto& value) {
    int all = 0;
    each_tile(i, [&](int, int keys) { all += value(keys); });
    return all;
  };
  const auto scan_tiles = [&](const auto& value, const auto& store) {
    return scan(
        count, [&](int i) { return sum(i, value); }, store);
  };
  const int64_t keys = scan_tiles([](int n) { return n; }, [](int, int) {});
  const int64_t fair = (keys * num_kv_heads + num_sms - 1) / num_sms;
  const int piece =
      (max(kShortestPiece, static_cast<int>(fair)) + kPieceKeys - 1) / kPieceKeys * kPieceKeys;
  const auto pieces = [&](int n) { return (n + piece - 1) / piece; };
  const auto parts = [&](int n) { return n > piece ? pieces(n) : 0; };
  scan_tiles(parts, [&](int i, int before) { first_partial[i] = before; });
  const int num_tiles = scan_tiles(pieces, [&](int i, int before) {
    int next = before, partial = first_partial[i];
    each_tile(i, [&](int row, int n) {
      for (int p = 0; p < pieces(n); ++p) {
        tiles[next++] = {num_single + i, row, p, pieces(n), partial};
      }
      partial += parts(n);
    });
  });
  if (threadIdx.x == 0) plan->num_tiles = num_tiles, plan->piece = piece;
}

// A block a plan. Decode items all have `chunk` keys (a sequence's last one fewer).
__global__ void __launch_bounds__(kPlanThreads) plan_kernel(BatchView batch, int num_sequences,
    AttentionShape shape, int warps, int num_sms, AttentionLayout layout, uint8_t* workspace) {
  begin_kernel();
  uint8_t* const base = workspace + blockIdx.x * layout.plan_bytes;
  auto* const plan = reinterpret_cast<AttentionPlan*>(base);
  auto* const first_item = reinterpret_cast<int32_t*>(base + layout.first_item);
  auto* const tiles = reinterpret_cast<PrefillTile*>(base + layout.tiles);
  const int window = blockIdx.x == 0 ? 0 : shape.window;
  const int num_kv_heads = shape.num_kv_heads, group = shape.num_heads / num_kv_heads;
  const int32_t* positions = batch.positions.data();
  const auto keys_of = [&](int s) {
    const int position = positions[s];
    const int oldest = window > 0 && position >= window ? position - window + 1 : 0;
    return position + 1 - oldest / kDecodeKeys * kDecodeKeys;
  };
  const int64_t keys = scan(batch.num_single, keys_of, [](int, int) {});
  int longest = 0;
  for (int s = threadIdx.x; s < batch.num_single; s += kPlanThreads) {
    longest = max(longest, keys_of(s));
  }
  longest = block_reduce(longest, Max());
  const int chunk = decode_chunk(keys, longest, batch.num_single, num_kv_heads, warps, num_sms);
  const int items = scan(
      batch.num_single, [&](int s) { return (keys_of(s) + chunk - 1) / chunk; },
      [&](int s, int before) { first_item[s] = before; });
  plan_tiles(batch, num_sequences, group, num_kv_heads, window, num_sms, plan,
      first_item + batch.num_single + 1, tiles);
  if (threadIdx.x != 0) return;
  first_item[batch.num_single] = items;
  plan->chunk = chunk, plan->num_items = items, plan->split = items > batch.num_single;
}

// One warp a (token, head), key by key: any dtype and head size.
template <typename T>
__global__ void plain_kernel(AttentionArgs<T> a, int num_tokens) {
  begin_kernel();
  const int64_t row = int64_t{blockIdx.x} * (blockDim.x / 32) + threadIdx.x / 32;
  const int token = static_cast<int>(row / a.num_heads), head = static_cast<int>(row % a.num_heads);
  if (token >= num_tokens) return;
  const int lane = threadIdx.x % 32;
  const int sequence = sequence_of(token, a.cu_tokens, a.num_single, a.num_sequences);
  const int position = a.positions[token];
  const uint32_t* table = a.block_tables[sequence];
  constexpr int kEach = kMaxPlainDim / 32;
  float q[kEach] = {}, sums[kEach] = {}, max = -INFINITY, weight = 0;
  const T* from = a.q + token * a.q_stride + int64_t{head} * a.head_dim;
  for (int i = 0; lane + 32 * i < a.head_dim; ++i) q[i] = to_float(from[lane + 32 * i]);
  for (int key = a.first_key(position); key <= position; ++key) {
    const int64_t place =
        table[key / a.block_size] * a.block_stride +
        (int64_t{head / a.group()} * a.block_size + key % a.block_size) * a.head_dim;
    float score = 0;
    for (int i = 0; lane + 32 * i < a.head_dim; ++i)
      score += q[i] * to_float(a.k[place + lane + 32 * i]);
    score = warp_reduce(score, Sum());
    score = a.cap_log2 > 0 ? a.template score<true>(score) : a.template score<false>(score);
    const float largest = fmaxf(max, score);
    const float rescale = exp2f(max - largest), p = exp2f(score - largest);
    max = largest;
    weight = weight * rescale + p;
    for (int i = 0; lane + 32 * i < a.head_dim; ++i) {
      sums[i] = sums[i] * rescale + p * to_float(a.v[place + lane + 32 * i]);
    }
  }
  T* to = a.out + token * a.out_stride + int64_t{head} * a.head_dim;
  for (int i = 0; lane + 32 * i < a.head_dim; ++i)
    to[lane + 32 * i] = from_float<T>(sums[i] / weight);
}

template <typename T>
AttentionArgs<T> make_args(const AttentionLimits& limits, const AttentionShape& shape,
    const TensorView& q, const KvCacheView& cache, const BatchView& batch, void* workspace,
    const TensorView& out) {
  constexpr float kLog2e = 1.44269504f;
  const AttentionLayout layout(limits);
  auto* base = static_cast<uint8_t*>(workspace);
  auto* plan = base + (shape.window > 0 ? layout.plan_bytes : 0);
  constexpr auto kSize = static_cast<int64_t>(sizeof(T));
  return {.q = q.as<T>(),
      .out = out.as<T>(),
      .k = cache.k.as<T>(),
      .v = cache.v.as<T>(),
      .q_stride = q.stride / kSize,
      .out_stride = out.stride / kSize,
      .block_stride = cache.k.stride / kSize,
      .num_blocks = cache.k.rows(),
      .cu_tokens = batch.cu_tokens.data(),
      .positions = batch.positions.data(),
      .block_tables = batch.block_tables.data(),
      .block_size = batch.block_size,
      .block_shift = std::countr_zero(static_cast<uint32_t>(batch.block_size)),
      .num_heads = shape.num_heads,
      .num_kv_heads = shape.num_kv_heads,
      .head_dim = shape.head_dim,
      .window = shape.window,
      .num_single = batch.num_single,
      .num_sequences = batch.num_sequences(),
      .scale_log2 = shape.scale * kLog2e,
      .cap_log2 = shape.softcap * kLog2e,
      .cap_scale = shape.softcap > 0 ? 2 * shape.scale / shape.softcap * kLog2e : 0,
      .plan = reinterpret_cast<const AttentionPlan*>(plan),
      .first_item = reinterpret_cast<const int32_t*>(plan + layout.first_item),
      .tiles = reinterpret_cast<const PrefillTile*>(plan + layout.tiles),
      .partial = reinterpret_cast<float*>(base + layout.partial),
      .tile_partial = reinterpret_cast<float*>(base + layout.tile_partial)};
}

}  // namespace

void plan_attention(
    const AttentionLimits& limits, const BatchView& batch, void* workspace, cudaStream_t stream) {
  const AttentionShape& shape = limits.shape;
  if (!on_tensor_cores(limits.act, shape)) return;
  launch("plan_attention", plan_kernel, num_plans(shape), kPlanThreads, 0, stream, batch,
      batch.num_sequences(), shape, decode_warps(shape.head_dim, limits.num_sms), limits.num_sms,
      AttentionLayout(limits), static_cast<uint8_t*>(workspace));
}

void attention(const AttentionLimits& limits, const AttentionShape& shape, const TensorView& q,
    const KvCacheView& cache, const BatchView& batch, void* workspace, const TensorView& out,
    cudaStream_t stream) {
  AttentionShape whole = limits.shape, asked = shape;
  CHECK(shape.window == 0 || shape.window == whole.window, "a window of {}, planned for {}",
      shape.window, whole.window);
  whole.window = asked.window = 0;
  CHECK(whole == asked, "another shape than the workspace was made for");
  CHECK(q.dtype == limits.act && out.dtype == limits.act && cache.k.dtype == limits.act &&
        cache.v.dtype == limits.act && cache.k.stride == cache.v.stride);
  CHECK(batch.num_sequences() <= limits.max_sequences && batch.num_tokens <= limits.max_tokens);
  if (batch.num_tokens == 0) return;
  dispatch_act(limits.act, [&]<typename T>() {
    const auto args = make_args<T>(limits, shape, q, cache, batch, workspace, out);
    if constexpr (!std::is_same_v<T, float>) {
      if (on_tensor_cores(limits.act, shape)) {
        CHECK(in_packs(cache.k, cache.v) && q.stride % 4 == 0 && out.stride % 4 == 0);
        if (batch.num_single > 0) decode_attention(args, limits.num_sms, stream);
        const int64_t rows =
            int64_t{batch.num_tokens - batch.num_single} * shape.num_heads / shape.num_kv_heads;
        const auto tiles =
            static_cast<int>(rows / kPrefillRows + batch.num_sequences() - batch.num_single +
                             most_pieces(limits.num_sms, shape.num_kv_heads));
        const auto prefill = on_hopper(shape.head_dim) && q.stride % 16 == 0
                                 ? &prefill_attention_hopper<T>
                                 : &prefill_attention<T>;
        if (rows > 0) {
          prefill(args, tiles, stream);
          combine_prefill(args, tiles, stream);
        }
        return;
      }
    }
    CHECK(shape.head_dim <= kMaxPlainDim, "heads of {}", shape.head_dim);
    const int64_t warps = int64_t{batch.num_tokens} * shape.num_heads;
    launch("plain attention", plain_kernel<T>, static_cast<unsigned>((warps + 7) / 8), 256, 0,
        stream, args, batch.num_tokens);
  });
}

}  // namespace millrace::cuda
