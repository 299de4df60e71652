// Bounds over a row of logits without sorting it: a radix select over their bits by a block of
// kThreads threads, on all of the row or on the few candidates listed in shared memory. What is
// summed by atomics is integers, so the order of threads does not show. For sample.cu alone.
#pragma once

#include <cub/block/block_scan.cuh>

#include "engine/kernels/cuda/math.cuh"

namespace millrace::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kBins = kThreads;
constexpr int kListBytes = 64 << 10;

// Logits 4 * group .. 4 * group + 3; -infinity from `size` on.
__device__ void load_four(const float* logits, int32_t size, int32_t group, float (&x)[4]) {
  if (4 * group + 4 <= size && reinterpret_cast<uintptr_t>(logits) % 16 == 0) {
    load_floats(logits + 4 * group, x);
    return;
  }
  for (int j = 0; j < 4; ++j) x[j] = 4 * group + j < size ? logits[4 * group + j] : -INFINITY;
}

// A logit as the bits of (max - logit) * factor: the larger the logit, the smaller its key.
constexpr uint32_t kMaxKey = 0x7F7FFFFF;
__device__ float below_max(uint32_t key) { return __uint_as_float(key); }

// Bins by key of even relative width, 128 an octave: bin 0 ends at 1/8, the last begins at 31.875.
constexpr uint32_t kFirstKey = 0x3E000000;
constexpr int kCoarseShift = 16;
__device__ uint32_t coarse_bin(uint32_t key) {
  return key < kFirstKey ? 0 : min((key - kFirstKey) >> kCoarseShift, uint32_t{kBins - 1});
}
__device__ uint32_t coarse_begin(uint32_t bin) {
  return bin == 0 ? 0 : kFirstKey + (bin << kCoarseShift);
}

struct Listed {
  uint32_t key;
  int32_t id;
};
constexpr int kMaxListed = kListBytes / static_cast<int>(sizeof(Listed));

// The candidates of a row: those listed, or all of it.
struct Source {
  const float* logits;
  int32_t size;
  float max;
  float factor;
  const Listed* list = nullptr;
  int32_t num_listed = 0;

  // body(key, id) for each, dealt to the threads; ids of one thread ascend where nothing is listed.
  template <typename Body>
  __device__ void for_each(const Body& body) const {
    const auto thread = static_cast<int32_t>(threadIdx.x);
    if (list != nullptr) {
      for (int32_t i = thread; i < num_listed; i += kThreads) body(list[i].key, list[i].id);
      return;
    }
    for (int32_t group = thread; 4 * group < size; group += kThreads) {
      float x[4];
      load_four(logits, size, group, x);
      for (int j = 0; j < 4; ++j) {
        const float below = fminf(fabsf((x[j] - max) * factor), 1e30f);
        if (4 * group + j < size) body(__float_as_uint(below), 4 * group + j);
      }
    }
  }
};

// Weights that are summed by atomics, in fixed point: their order does not show.
__device__ uint64_t weight_of(uint32_t key) {
  return __float2ull_rn(expf(-below_max(key)) * 0x1p40f);
}

template <typename W>
struct Reached {
  uint32_t bin;
  W left;
};
// The bin where the sum of the bins before and itself reaches `wanted` (at least 1), and what is
// left of it there; the last bin if none does.
template <typename W>
__device__ Reached<W> reach(const W* bins, W wanted) {
  using Prefix = cub::BlockScan<W, kThreads, cub::BLOCK_SCAN_WARP_SCANS>;
  __shared__ typename Prefix::TempStorage scratch;
  __shared__ Reached<W> reached;
  const W own = bins[threadIdx.x];
  W before;
  Prefix(scratch).ExclusiveSum(own, before);
  if (before < wanted && (before + own >= wanted || threadIdx.x == kBins - 1)) {
    reached = {threadIdx.x, wanted - before};
  }
  __syncthreads();
  return reached;
}

// The key at which the weights, summed from key 0 on, reach `wanted`.
template <typename W, typename Weight>
__device__ uint32_t select(const Source& source, W* bins, W wanted, const Weight& weight) {
  uint32_t low = 0, high = kMaxKey;
  for (bool coarse = true; low < high; coarse = false) {
    const int shift = max(0, 22 - __clz(static_cast<int>(high - low)));  // kBins bins or fewer
    __syncthreads();
    bins[threadIdx.x] = 0;
    __syncthreads();
    source.for_each([&](uint32_t key, int32_t) {
      if (key < low || key > high) return;
      atomicAdd(bins + (coarse ? coarse_bin(key) : (key - low) >> shift), weight(key));
    });
    __syncthreads();
    const Reached<W> reached = reach(bins, wanted);
    wanted = reached.left;
    if (coarse) {
      low = coarse_begin(reached.bin);
      if (reached.bin < kBins - 1) high = coarse_begin(reached.bin + 1) - 1;
    } else {
      low += reached.bin << shift;
      high = min(high, low + (1u << shift) - 1);
    }
  }
  return low;
}

// The bin that a nucleus of `share` of the row's mass cannot reach beyond.
__device__ uint32_t nucleus_bin(const uint32_t* counts, float share, float mass) {
  using Prefix = cub::BlockScan<float, kThreads, cub::BLOCK_SCAN_WARP_SCANS>;
  __shared__ typename Prefix::TempStorage scratch;
  const uint32_t bin = kBins - 1 - threadIdx.x;
  const float most = static_cast<float>(counts[bin]) * expf(-below_max(coarse_begin(bin)));
  float beyond;
  Prefix(scratch).ExclusiveSum(most, beyond);
  const bool enough = beyond <= 0.99f * (1 - share) * mass;  // a margin for the rounding
  return kBins - 1 - block_reduce(enough ? threadIdx.x : 0u, Max());
}

// Lists the candidates that top-k, else top-p, else `cut` may keep, unless they are too many.
// Returns the sum of exp(-key) over the row where top-p needs it.
__device__ float narrow(
    Source& source, uint32_t* bins, Listed* list, int32_t top_k, float top_p, uint32_t cut) {
  __shared__ int32_t num_listed;
  const bool by_mass = top_k == 0 && top_p < 1;
  __syncthreads();
  bins[threadIdx.x] = 0;
  if (threadIdx.x == 0) num_listed = 0;
  __syncthreads();
  float mass = 0;
  source.for_each([&](uint32_t key, int32_t) {
    atomicAdd(bins + coarse_bin(key), 1u);
    if (by_mass) mass += expf(-below_max(key));
  });
  mass = block_reduce(mass, Sum());
  const uint32_t last = top_k > 0 ? reach(bins, static_cast<uint32_t>(top_k)).bin
                        : by_mass ? nucleus_bin(bins, top_p, mass)
                                  : coarse_bin(cut);
  const uint32_t count = block_reduce(threadIdx.x <= last ? bins[threadIdx.x] : 0u, Sum());
  if (count > kMaxListed) return mass;
  source.for_each([&](uint32_t key, int32_t id) {
    if (coarse_bin(key) <= last) list[atomicAdd(&num_listed, 1)] = {key, id};
  });
  __syncthreads();
  source.list = list;
  source.num_listed = static_cast<int32_t>(count);
  return mass;
}

}  // namespace
}  // namespace millrace::cuda
