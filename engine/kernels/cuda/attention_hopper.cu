// Prefill and mixed rows on Hopper, after FlashAttention-3 (Shah et al., 2024): one warp brings
// tiles of 128 keys by tensor copies, two warpgroups take 64 of the tile's 128 rows each. While the
// softmax of one tile of keys is computed, the products of the next with q and of the one before
// with v run.
#include <algorithm>

#include "engine/kernels/cuda/attention.cuh"
#include "engine/kernels/cuda/hopper.cuh"

namespace millrace::cuda {

namespace {

using hopper::Barrier;

constexpr int kKeys = 128, kBox = 16;  // keys of a tile, and of one copy: those lie side by side
constexpr int kStages = 2;
constexpr int kConsumerWarps = 8, kThreads = 32 * kConsumerWarps + 128;
constexpr int kPanel = 64;                        // columns
constexpr int kPanelBytes = kKeys * kPanel * 2;   // of k or v
constexpr int kRowsPanelBytes = 64 * kPanel * 2;  // of one warpgroup's q
template <int D>
constexpr int kTileBytes = kKeys* D * 2;
// q of both warpgroups, k and v of each stage, barriers; begins at a multiple of 1,024.
template <int D>
constexpr int kSharedBytes =
    kPrefillRows* D * 2 + 2 * kStages* kTileBytes<D> + 4 * kStages* int{sizeof(Barrier)} + 1024;

#ifdef MILLRACE_ON_HOPPER

struct Tiles {
  uint8_t *q, *k, *v;
  Barrier *k_full, *k_free, *v_full, *v_free;
};

// One warp.
template <typename T, int D>
__device__ void bring_tiles(const AttentionArgs<T>& a, const Tiles& tiles, const PrefillPlace& at,
    const CUtensorMap* k_map, const CUtensorMap* v_map) {
  constexpr int kBoxes = kKeys / kBox;
  const int lane = threadIdx.x % 32, box = lane % kBoxes, panel = lane / kBoxes;
  const uint32_t* table = a.block_tables[at.tile.sequence];
  const auto block_of = [&](int first) {
    return first + box * kBox < at.end ? table[(first + box * kBox) >> a.block_shift] : 0u;
  };
  uint32_t next = block_of(at.begin);
  for (int first = at.begin, i = 0; first < at.end; first += kKeys, ++i) {
    const int stage = i % kStages, parity = i / kStages % 2 ^ 1;
    const uint32_t block = next;
    next = block_of(first + kKeys);
    const int boxes = min(kBoxes, (at.end - first + kBox - 1) / kBox);
    const auto bring = [&](uint8_t* to, const CUtensorMap* map, Barrier* free, Barrier* full) {
      hopper::wait(free + stage, parity);
      if (lane == 0) hopper::arrive_expecting(full + stage, boxes * kBox * D * 2);
      __syncwarp();
      if (box < boxes && panel < D / kPanel) {
        hopper::copy_box(to + stage * kTileBytes<D> + panel * kPanelBytes + box * kBox * 128, map,
            panel * kPanel, (first + box * kBox) & (a.block_size - 1), at.kv_head,
            static_cast<int>(block), full + stage);
      }
    };
    bring(tiles.k, k_map, tiles.k_free, tiles.k_full);
    bring(tiles.v, v_map, tiles.v_free, tiles.v_full);
  }
}

// A warpgroup's 64 rows of q to shared memory.
template <typename T, int D>
__device__ void load_q(
    const AttentionArgs<T>& a, const PrefillPlace& at, int first_row, uint8_t* q) {
  const int group = a.group();
#pragma unroll
  for (int turn = 0; turn < 64 * D / 8 / 128; ++turn) {
    const int i = threadIdx.x % 128 + turn * 128;
    const int r = i / (D / 8), part = i % (D / 8), row = first_row + r;
    uint4 value = make_uint4(0, 0, 0, 0);
    if (row < at.num_rows) {
      value = *reinterpret_cast<const uint4*>(a.q + (at.first_token + row / group) * a.q_stride +
                                              (at.kv_head * group + row % group) * D + part * 8);
    }
    *reinterpret_cast<uint4*>(
        q + part / 8 * kRowsPanelBytes + r * 128 + ((part % 8 ^ r % 8) * 16)) = value;
  }
}

// The rows of one thread: 4 g + t of a warp holds rows g and g + 8, of every 8 columns 2 t and
// 2 t + 1: the layout of wgmma's results.
template <typename T, int D>
struct ThreadRows {
  float sums[D / 2] = {};
  float max[2] = {-INFINITY, -INFINITY};
  float weight[2] = {};  // of this thread's columns only
  uint32_t p[kKeys / 16][4];

  // From scores to weights. Returns by what the sums must be scaled. begin, end: the keys that the
  // rows see.
  __device__ void softmax(float (&s)[kKeys / 2], float scale_log2, bool masked,
      const int (&begin)[2], const int (&end)[2], float (&rescale)[2]) {
    const int t = threadIdx.x % 4;
    if (masked) {
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) {
        const int key = i / 4 * 8 + 2 * t + i % 2, h = i / 2 % 2;
        if (key < begin[h] || key >= end[h]) s[i] = -INFINITY;
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float largest = max[h];
#pragma unroll
      for (int i = 0; i < kKeys / 8; ++i) {
        largest = fmaxf(largest, fmaxf(s[4 * i + 2 * h], s[4 * i + 2 * h + 1]));
      }
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
      const float base = largest == -INFINITY ? 0 : largest * scale_log2;  // no key yet
      rescale[h] = fast_exp2(max[h] * scale_log2 - base);
      max[h] = largest;
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kKeys / 8; ++i) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float& score = s[4 * i + 2 * h + j];
          score = fast_exp2(fmaf(score, scale_log2, -base));
          sum += score;
        }
      }
      weight[h] = weight[h] * rescale[h] + sum;
    }
  }
  __device__ void pack(const float (&s)[kKeys / 2]) {
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) p[i / 4][i % 4] = pack_pair<T>(s[2 * i], s[2 * i + 1]);
  }
  __device__ void scale(const float (&factor)[2]) {
#pragma unroll
    for (int i = 0; i < D / 2; ++i) sums[i] *= factor[i / 2 % 2];
  }
};

// s = q · kᵀ, begun.
template <typename T, int D>
__device__ __forceinline__ void begin_scores(
    float (&s)[kKeys / 2], const uint8_t* q, const uint8_t* k) {
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
    const int panel = step / 4, bytes = step % 4 * 32;
    hopper::product_abt<T>(s, hopper::descriptor(q + panel * kRowsPanelBytes + bytes, 16),
        hopper::descriptor(k + panel * kPanelBytes + bytes, 16), step != 0);
  }
  hopper::commit_products();
}
// sums += p · v, begun.
template <typename T, int D>
__device__ __forceinline__ void begin_sums(ThreadRows<T, D>& rows, const uint8_t* v) {
#pragma unroll
  for (int step = 0; step < kKeys / 16; ++step) {
    hopper::product_pv<T>(
        rows.sums, rows.p[step], hopper::descriptor(v + step * 16 * 128, kPanelBytes));
  }
  hopper::commit_products();
}

// Values of keys nobody may see are zeros: their weights are, but 0 · NaN is not.
template <int D>
__device__ void clear_values(uint8_t* v, int first, int warpgroup) {
  for (int i = first * 8 + threadIdx.x % 128; i < kKeys * 8; i += 128) {
#pragma unroll
    for (int panel = 0; panel < D / kPanel; ++panel) {
      *reinterpret_cast<uint4*>(v + panel * kPanelBytes + i * 16) = make_uint4(0, 0, 0, 0);
    }
  }
  hopper::fence_async();
  hopper::sync_some(1 + warpgroup);
}

// One warpgroup: its 64 rows against all keys.
template <typename T, int D, bool kCapped>
__device__ void attend(const AttentionArgs<T>& a, const Tiles& tiles, const PrefillPlace& at) {
  const int warpgroup = threadIdx.x / 128, first_row = at.tile.first_row + warpgroup * 64;
  uint8_t* const q = tiles.q + warpgroup * 64 * D * 2;
  load_q<T, D>(a, at, first_row, q);
  hopper::fence_async();
  hopper::sync_some(1 + warpgroup);

  const int group = a.group();
  int row[2], position[2], oldest[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    row[h] = first_row + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4 + 8 * h;
    position[h] = at.first_position + min(row[h], at.num_rows - 1) / group;
    oldest[h] = a.first_key(position[h]);
  }
  // Between them every row of the warpgroup sees every key.
  const int low = at.first_position + min(first_row, at.num_rows - 1) / group + 1;
  const int high = a.first_key(at.first_position + min(first_row + 63, at.num_rows - 1) / group);
  ThreadRows<T, D> rows;
  float s[kKeys / 2], rescale[2];
  const float scale_log2 = kCapped ? 1 : a.scale_log2;
  const auto softmax = [&](int first) {
#pragma unroll
    for (int i = 0; kCapped && i < kKeys / 2; ++i) s[i] = a.template score<kCapped>(s[i]);
    rows.softmax(s, scale_log2, first + kKeys > low || first < high,
        {oldest[0] - first, oldest[1] - first}, {position[0] + 1 - first, position[1] + 1 - first},
        rescale);
  };
  const auto scores = [&](int i) {
    hopper::wait(tiles.k_full + i % kStages, i / kStages % 2);
    hopper::fence_registers();
    begin_scores<T, D>(s, q, tiles.k + i % kStages * kTileBytes<D>);
  };
  const auto values = [&](int i) {
    uint8_t* v = tiles.v + i % kStages * kTileBytes<D>;
    hopper::wait(tiles.v_full + i % kStages, i / kStages % 2);
    const int inside = at.end - at.begin - i * kKeys;
    if (inside < kKeys) clear_values<D>(v, inside, warpgroup);
    hopper::fence_registers();
    begin_sums(rows, v);
  };
  const auto release = [&](Barrier* free, int i) {
    if (threadIdx.x % 32 == 0) hopper::arrive(free + i % kStages);
  };
  scores(0);
  hopper::wait_products<0>();
  release(tiles.k_free, 0);
  softmax(at.begin);
  rows.pack(s);
  const int num_tiles = (at.end - at.begin + kKeys - 1) / kKeys;
  for (int i = 1; i < num_tiles; ++i) {
    scores(i);
    values(i - 1);
    hopper::wait_products<1>();
    release(tiles.k_free, i);
    softmax(at.begin + i * kKeys);
    hopper::wait_products<0>();
    release(tiles.v_free, i - 1);
    rows.scale(rescale);
    rows.pack(s);
  }
  values(num_tiles - 1);
  hopper::wait_products<0>();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float weight = rows.weight[h] + __shfl_xor_sync(0xffffffffu, rows.weight[h], 1);
    weight += __shfl_xor_sync(0xffffffffu, weight, 2);
    if (row[h] >= at.num_rows) continue;
    if (at.tile.num_pieces > 1) {
      float* to = a.partial_row(at, at.tile.piece, row[h]);
#pragma unroll
      for (int i = 0; i < D / 8; ++i) {
        *reinterpret_cast<float2*>(to + 8 * i + 2 * (threadIdx.x % 4)) =
            make_float2(rows.sums[4 * i + 2 * h], rows.sums[4 * i + 2 * h + 1]);
      }
      if (threadIdx.x % 4 == 0) {
        *reinterpret_cast<float2*>(to + D) = make_float2(rows.max[h] * scale_log2, weight);
      }
      continue;
    }
    T* to = a.out + (at.first_token + row[h] / group) * a.out_stride +
            (at.kv_head * group + row[h] % group) * D + 2 * (threadIdx.x % 4);
    const float factor = 1 / weight;
#pragma unroll
    for (int i = 0; i < D / 8; ++i) {
      *reinterpret_cast<uint32_t*>(to + 8 * i) =
          pack_pair<T>(rows.sums[4 * i + 2 * h] * factor, rows.sums[4 * i + 2 * h + 1] * factor);
    }
  }
}

#endif  // MILLRACE_ON_HOPPER

template <typename T, int D, bool kCapped>
__global__ void __launch_bounds__(kThreads, 1) hopper_kernel(AttentionArgs<T> a,
    const __grid_constant__ CUtensorMap k_map, const __grid_constant__ CUtensorMap v_map) {
#ifdef MILLRACE_ON_HOPPER
  begin_kernel();
  // The last tiles have the most keys: they begin first.
  const int index = a.plan->num_tiles - 1 - static_cast<int>(blockIdx.x);
  if (index < 0) return;
  const PrefillPlace at = a.place(index, blockIdx.y);

  extern __shared__ uint8_t unaligned[];
  Tiles tiles;
  tiles.q = unaligned + (1024 - hopper::address(unaligned) % 1024) % 1024;
  tiles.k = tiles.q + kPrefillRows * D * 2;
  tiles.v = tiles.k + kStages * kTileBytes<D>;
  tiles.k_full = reinterpret_cast<Barrier*>(tiles.v + kStages * kTileBytes<D>);
  tiles.k_free = tiles.k_full + kStages;
  tiles.v_full = tiles.k_free + kStages;
  tiles.v_free = tiles.v_full + kStages;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      hopper::init(tiles.k_full + i, 1);
      hopper::init(tiles.v_full + i, 1);
      hopper::init(tiles.k_free + i, kConsumerWarps);
      hopper::init(tiles.v_free + i, kConsumerWarps);
    }
    hopper::fence_async();
  }
  __syncthreads();
  if (threadIdx.x >= 32 * kConsumerWarps) {
    hopper::fewer_registers<24>();
    if (threadIdx.x < 32 * (kConsumerWarps + 1)) bring_tiles<T, D>(a, tiles, at, &k_map, &v_map);
  } else {
    hopper::more_registers<240>();
    attend<T, D, kCapped>(a, tiles, at);
  }
#endif
}

// Boxes of 16 keys and 64 columns of a layer's keys or values [blocks, Hkv, block_size, D].
template <typename T>
CUtensorMap tensor_map(const AttentionArgs<T>& a, const T* tensor) {
  constexpr auto kBytes = static_cast<int64_t>(sizeof(T));
  const int64_t d = a.head_dim, slots = a.block_size;
  return hopper::tensor_map(tensor, {d, slots, a.num_kv_heads, a.num_blocks},
      {d * kBytes, slots * d * kBytes, a.block_stride * kBytes}, {kPanel, kBox, 1, 1});
}

template <typename T, int D>
void enqueue(const AttentionArgs<T>& args, int max_tiles, cudaStream_t stream) {
  auto* kernel = args.cap_log2 > 0 ? hopper_kernel<T, D, true> : hopper_kernel<T, D, false>;
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes<D>),
      "shared memory of attention");
  const dim3 grid(static_cast<unsigned>(max_tiles), static_cast<unsigned>(args.num_kv_heads));
  launch("prefill attention on Hopper", kernel, grid, kThreads, kSharedBytes<D>, stream, args,
      tensor_map(args, args.k), tensor_map(args, args.v));
}

}  // namespace

bool on_hopper(int head_dim) { return hopper::available() && (head_dim == 64 || head_dim == 128); }

template <typename T>
void prefill_attention_hopper(const AttentionArgs<T>& args, int max_tiles, cudaStream_t stream) {
  if (args.head_dim == 64) enqueue<T, 64>(args, max_tiles, stream);
  else enqueue<T, 128>(args, max_tiles, stream);
}
template void prefill_attention_hopper(const AttentionArgs<__half>&, int, cudaStream_t);
template void prefill_attention_hopper(const AttentionArgs<__nv_bfloat16>&, int, cudaStream_t);

}  // namespace millrace::cuda
