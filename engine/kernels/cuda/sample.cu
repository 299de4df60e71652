// Sampling without sorting. A first launch reads the logits once, several blocks a row: finite,
// largest, log-sum-exp, and for rows without filters and changed logits the token itself; of ranks
// that share a vocabulary each scans its part, and 24 bytes a block are all that travels. A second
// one, a block a row, merges the parts and does what else a row asks for: its bounds are found by
// histograms over the bits of the logits, on the few that may pass, listed in shared memory. All
// sums that decide are integers or have a fixed order: ranks that sample the same row agree.
#include <algorithm>
#include <cfloat>

#include "engine/core/cuda/launch.cuh"
#include "engine/kernels/cpu/philox.h"
#include "engine/kernels/cuda/kernels.h"
#include "engine/kernels/cuda/math.cuh"
#include "engine/kernels/cuda/select.cuh"

namespace millrace::cuda {

namespace {

constexpr int kScanThreads = 256;
constexpr int kMaxSplits = 64;  // blocks that share a row in the first launch

__device__ float inverse_temperature(const SamplingParams& p) {
  return p.temperature > 0 ? fminf(1.0f / p.temperature, FLT_MAX) : 1.0f;
}

// u = (word + 0.5) / 2^32 is uniform in (0, 1). 1 - u, to full precision near 0 as well.
__device__ float rest_of(uint32_t word) { return (static_cast<float>(~word) + 0.5f) * 0x1p-32f; }
// -log(-log u): at most -log(1 - u).
__device__ float gumbel(uint32_t word) {
  const float log_u = word < 0x80000000u ? logf((static_cast<float>(word) + 0.5f) * 0x1p-32f)
                                         : log1pf(-rest_of(word));
  return -logf(-log_u);
}

struct Candidate {
  float logit;
  float noise;
  int32_t id;  // -1: none
};

// By logit * factor + noise, ties to the lower id. From differences, so that neither a large factor
// overflows nor the common part of the logits costs digits.
__device__ Candidate better(const Candidate& a, const Candidate& b, float factor) {
  if (a.id < 0 || b.id < 0) return a.id < 0 ? b : a;
  const float lead = (b.logit - a.logit) * factor + (b.noise - a.noise);
  return lead > 0 || (lead == 0 && b.id < a.id) ? b : a;
}
__device__ Candidate best_of_warp(Candidate best, float factor) {
  for (int offset = 16; offset > 0; offset /= 2) {
    const Candidate other{__shfl_xor_sync(~0u, best.logit, offset),
        __shfl_xor_sync(~0u, best.noise, offset), __shfl_xor_sync(~0u, best.id, offset)};
    best = better(best, other, factor);
  }
  return best;
}

// What is known of a part of a row.
struct Scan {
  Candidate best{-INFINITY, 0, -1};
  int32_t finite = 1;
  float max = -INFINITY;  // this and the sum of exp(logit - max): where logprobs are wanted
  float sum = 0;
};
constexpr int64_t kScanFloats = sizeof(Scan) / sizeof(float);
static_assert(sizeof(Scan) == 24);  // as it travels among f32

// This thread's share of logits [4 * begin, 4 * end) below `size`, the first of which is that of
// first_id; every thread of the block calls.
__device__ Scan scan(const float* logits, int32_t size, int32_t first_id, int32_t begin,
    int32_t end, const SampleRow& row, bool noisy) {
  const SamplingParams& p = *row.params;
  const float factor = noisy ? inverse_temperature(p) : 1.0f;
  const int32_t limit = min(size, 4 * end);
  Scan s;
  for (int32_t first = begin; first < end; first += static_cast<int32_t>(blockDim.x)) {
    const int32_t group = first + static_cast<int32_t>(threadIdx.x);
    float x[4];
    load_four(logits, limit, group, x);
    for (int j = 0; j < 4; ++j) {
      if (4 * group + j < limit && !(fabsf(x[j]) <= FLT_MAX)) s.finite = 0;
    }
    if (row.num_logprobs() >= 0) {
      const float max = fmaxf(fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])), s.max);
      if (max > -INFINITY) {
        s.sum *= expf(s.max - max);
        for (const float v : x) s.sum += expf(v - max);
      }
      s.max = max;
    }
    if (!noisy) {
      for (int j = 0; j < 4; ++j) {
        if (x[j] > s.best.logit) s.best = {x[j], 0, first_id + 4 * group + j};
      }
      continue;
    }
    // Most tokens cannot win even with the bound of their noise; the warp's best is shared, so that
    // few records are left to compute.
    const PhiloxBlock words =
        sampling_noise(p.seed, row.position, static_cast<uint32_t>(first_id / 4 + group));
    bool hopeful = false;
    for (int j = 0; j < 4; ++j) {
      const float bound = (x[j] - s.best.logit) * factor - __logf(rest_of(words[j]));
      hopeful |= bound + 1e-3f > s.best.noise;
    }
    if (!__any_sync(~0u, hopeful)) continue;
    for (int j = 0; j < 4; ++j) {
      if (4 * group + j >= limit) continue;
      s.best = better(s.best, {x[j], gumbel(words[j]), first_id + 4 * group + j}, factor);
    }
    s.best = best_of_warp(s.best, factor);
  }
  return s;
}

// The shares of all threads of the block, merged; given to each.
__device__ Scan merge(Scan s, float factor) {
  __shared__ Candidate parts[32];
  const Candidate best = best_of_warp(s.best, factor);
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = best;
  s.finite = __syncthreads_and(s.finite);
  s.best = parts[0];
  for (unsigned i = 1; i < blockDim.x / 32; ++i) s.best = better(s.best, parts[i], factor);
  const float max = block_reduce(s.max, Max());
  s.sum = block_reduce(s.max == max ? s.sum : s.sum * expf(s.max - max), Sum());
  s.max = max;
  return s;
}

__global__ void __launch_bounds__(kScanThreads) scan_kernel(const float* logits, int64_t stride,
    int32_t size, int32_t first_id, const SampleRow* rows, Scan* scans) {
  begin_kernel();
  const SampleRow& row = rows[blockIdx.y];
  const SamplingParams& p = *row.params;
  const bool noisy = p.temperature > 0 && row.scored < 0 && !row.filters() && !row.changes_logits();
  const int32_t groups = (size + 3) / 4;
  const auto splits = static_cast<int32_t>(gridDim.x);
  const int32_t each = (groups + splits - 1) / splits;
  const int32_t begin = min(groups, static_cast<int32_t>(blockIdx.x) * each);
  const Scan s = merge(scan(logits + blockIdx.y * stride, size, first_id, begin,
                           min(groups, begin + each), row, noisy),
      noisy ? inverse_temperature(p) : 1.0f);
  if (threadIdx.x == 0) scans[blockIdx.y * gridDim.x + blockIdx.x] = s;
}

// The n largest logits, best first, ties by lower id, to top[0 .. n).
__device__ void take_top(const Source& source, int32_t n, float log_total, TokenLogprob* top) {
  uint64_t next = 0;  // key and id: the least that has not been taken
  for (int32_t i = 0; i < n; ++i) {
    uint64_t least = ~uint64_t{0};
    source.for_each([&](uint32_t key, int32_t id) {
      const uint64_t place = uint64_t{key} << 32 | static_cast<uint32_t>(id);
      if (place >= next) least = min(least, place);
    });
    least = ~block_reduce(~least, Max());
    if (threadIdx.x == 0) {
      top[i] = {static_cast<int32_t>(least & 0xFFFFFFFF),
          -below_max(static_cast<uint32_t>(least >> 32)) - log_total};
    }
    next = least + 1;
  }
}

// temperature > 0, with filters; source: scaled by temperature.
__device__ int32_t draw_filtered(
    Source source, uint64_t* bins, Listed* list, const SampleRow& row) {
  const SamplingParams& p = *row.params;
  auto* sums = reinterpret_cast<unsigned long long*>(bins);
  auto* counts = reinterpret_cast<uint32_t*>(bins);
  const int32_t top_k = p.top_k < source.size ? max(p.top_k, 0) : 0;
  uint32_t cut = p.min_p > 0 ? __float_as_uint(fabsf(logf(p.min_p))) : kMaxKey;
  const float mass = narrow(source, counts, list, top_k, p.top_p, cut);
  uint32_t kept = kMaxKey;  // by top-k
  if (top_k > 0) {
    kept = select(source, counts, static_cast<uint32_t>(top_k), [](uint32_t) { return 1u; });
    cut = min(cut, kept);
  }
  if (p.top_p < 1) {
    const auto weight = [&](uint32_t key) -> unsigned long long {
      return key <= kept ? weight_of(key) : 0;
    };
    unsigned long long total = 0;
    if (top_k > 0) source.for_each([&](uint32_t key, int32_t) { total += weight(key); });
    total = top_k > 0 ? block_reduce(total, Sum()) : __double2ull_rn(mass * 0x1p40);
    const unsigned long long wanted = __double2ull_ru(p.top_p * __ull2double_rn(total));
    cut = min(cut, select(source, sums, max(wanted, 1ull), weight));
  }
  uint64_t best = 0;  // score in an order of integers, and ~id
  source.for_each([&](uint32_t key, int32_t id) {
    if (key > cut) return;
    const PhiloxBlock words = sampling_noise(p.seed, row.position, static_cast<uint32_t>(id / 4));
    uint32_t word = words[0];
    for (int j = 1; j < 4; ++j) word = id % 4 == j ? words[j] : word;
    const uint32_t score = __float_as_uint(gumbel(word) - below_max(key));
    const uint32_t ordered = score >> 31 ? ~score : score | 0x80000000u;
    best = max(best, uint64_t{ordered} << 32 | ~static_cast<uint32_t>(id));
  });
  return static_cast<int32_t>(~static_cast<uint32_t>(block_reduce(best, Max())));
}

constexpr int32_t kCounters = kListBytes / 4;
constexpr uint32_t kInPrompt = 0x80000000;

// Adds the biases, one a thread; where only the listed tokens are allowed, the others fall.
__device__ void bias(float* logits, int32_t size, const SampleRow& row) {
  static_assert(kMaxLogitBias <= kThreads);
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const TokenBias entry = thread < row.num_biases ? row.biases[thread] : TokenBias{size, 0};
  const bool is_mine = entry.token < size;
  const float biased = is_mine ? fmaxf(logits[entry.token] + entry.bias, kForbidden) : 0;
  __syncthreads();
  for (int32_t i = thread; row.params->only_listed && i < size; i += kThreads) {
    logits[i] = kForbidden;
  }
  __syncthreads();
  if (is_mine) logits[entry.token] = biased;
  __syncthreads();
}

// Penalizes each id of the sequence once, in the arithmetic of the CPU (no fused multiply-add).
// counters [kCounters]: the vocabulary is taken in pieces that they cover.
__device__ void penalize(float* logits, int32_t size, const SampleRow& row, uint32_t* counters) {
  const SamplingParams& p = *row.params;
  const auto thread = static_cast<int32_t>(threadIdx.x);
  for (int32_t begin = 0; begin < size; begin += kCounters) {
    const int32_t piece = min(kCounters, size - begin);
    for (int32_t i = thread; i < piece; i += kThreads) counters[i] = 0;
    __syncthreads();
    for (int32_t i = thread; i < row.num_ids; i += kThreads) {
      const int32_t at = row.ids[i] - begin;
      if (at < 0 || at >= piece) continue;
      if (i < row.num_prompt) atomicOr(counters + at, kInPrompt);
      else atomicAdd(counters + at, 1u);
    }
    __syncthreads();
    for (int32_t i = thread; i < piece; i += kThreads) {
      if (counters[i] == 0) continue;
      const auto count = static_cast<float>(counters[i] & ~kInPrompt);
      float x = logits[begin + i];
      x = x > 0 ? x / p.repetition_penalty : __fmul_rn(x, p.repetition_penalty);
      if (count > 0) {
        x -= __fadd_rn(p.presence_penalty, __fmul_rn(p.frequency_penalty, count));
      }
      logits[begin + i] = fminf(fmaxf(x, kForbidden), -kForbidden);
    }
  }
  __syncthreads();
}

// The inverse of both for one token that may be drawn, to a few units in the last place.
__device__ float unchanged(float logit, int32_t token, const SampleRow& row) {
  const SamplingParams& p = *row.params;
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const bool is_biased = thread < row.num_biases && row.biases[thread].token == token;
  const float bias = block_reduce(is_biased ? row.biases[thread].bias : 0.0f, Sum());
  if (!p.has_penalties()) return logit - bias;
  uint32_t seen = 0, count = 0;
  for (int32_t i = thread; i < row.num_ids; i += kThreads) {
    if (row.ids[i] == token) ++(i < row.num_prompt ? seen : count);
  }
  seen = block_reduce(seen, Sum());
  count = block_reduce(count, Sum());
  if (seen + count == 0) return logit - bias;
  if (count > 0) logit += p.presence_penalty + p.frequency_penalty * static_cast<float>(count);
  return (logit > 0 ? logit * p.repetition_penalty : logit / p.repetition_penalty) - bias;
}

__global__ void __launch_bounds__(kThreads)
    finish_kernel(float* all_logits, int64_t stride, int32_t size, const SampleRow* rows,
        const Scan* scans, int32_t splits, SampledRow* results, int32_t* ids) {
  begin_kernel();
  extern __shared__ uint4 list_memory[];  // kListBytes
  __shared__ uint64_t bins[kBins];
  auto* list = reinterpret_cast<Listed*>(list_memory);
  const SampleRow row = rows[blockIdx.x];
  const SamplingParams p = *row.params;
  float* logits = all_logits + blockIdx.x * stride;
  const bool filtered = row.filters();
  const float factor = p.temperature > 0 && !filtered ? inverse_temperature(p) : 1.0f;
  Scan s;
  if (static_cast<int32_t>(threadIdx.x) < splits) s = scans[blockIdx.x * splits + threadIdx.x];
  s = merge(s, row.changes_logits() ? 1.0f : factor);
  const float max_logit = s.max;
  const float log_total = logf(s.sum);
  const int32_t num_top = s.finite ? min(min(row.num_logprobs(), size), kMaxLogprobs) : 0;
  if (num_top > 0) {
    Source source{logits, size, max_logit, 1.0f};
    narrow(source, reinterpret_cast<uint32_t*>(bins), list, num_top, 1.0f, kMaxKey);
    take_top(source, num_top, log_total, results[blockIdx.x].top);
  }
  if (s.finite && row.changes_logits()) {
    bias(logits, size, row);
    if (p.has_penalties()) penalize(logits, size, row, reinterpret_cast<uint32_t*>(list));
    s = merge(
        scan(logits, size, 0, 0, (size + 3) / 4, row, p.temperature > 0 && !filtered), factor);
  }
  int32_t token = s.finite ? (row.scored >= 0 ? row.scored : s.best.id) : 0;
  if (s.finite && filtered) {
    const Source source{logits, size, s.best.logit, inverse_temperature(p)};
    token = draw_filtered(source, bins, list, row);
  }
  float logprob = 0;
  if (s.finite && row.num_logprobs() >= 0) {
    const bool is_best = row.scored < 0 && !filtered && !row.changes_logits();
    float logit = is_best ? s.best.logit : logits[token];
    if (row.changes_logits()) logit = unchanged(logit, token, row);
    logprob = logit - max_logit - log_total;
  }
  if (threadIdx.x != 0) return;
  results[blockIdx.x].token = token;
  if (ids != nullptr) ids[blockIdx.x] = token;
  results[blockIdx.x].logprob = logprob;
  results[blockIdx.x].finite = s.finite;
  results[blockIdx.x].num_top = max(num_top, 0);
}

}  // namespace

// Enough blocks to fill a GPU, of at least two turns of their threads each.
int64_t scan_cols(int64_t rows, int64_t n) {
  const int64_t useful = std::clamp<int64_t>((n + 2047) / 2048, 1, kMaxSplits);
  const int64_t splits = std::clamp<int64_t>(1024 / std::max<int64_t>(rows, 1), 1, useful);
  return splits * kScanFloats;
}

void scan_logits(const TensorView& logits, int32_t first_id, std::span<const SampleRow> rows,
    const TensorView& scans, cudaStream_t stream) {
  CHECK(logits.dtype == DType::kF32 && logits.rows() == static_cast<int64_t>(rows.size()) &&
        logits.cols() > 0 && first_id % 4 == 0);
  CHECK(scans.dtype == DType::kF32 && scans.contiguous() && scans.rows() == logits.rows() &&
        scans.cols() > 0 && scans.cols() % kScanFloats == 0);
  if (rows.empty()) return;
  const dim3 grid(
      static_cast<unsigned>(scans.cols() / kScanFloats), static_cast<unsigned>(rows.size()));
  launch("scanning logits", scan_kernel, grid, kScanThreads, 0, stream, logits.as<float>(),
      logits.stride / 4, static_cast<int32_t>(logits.cols()), first_id, rows.data(),
      scans.as<Scan>());
}

void sample(const TensorView& logits, const TensorView& scans, std::span<const SampleRow> rows,
    SampledRow* results, int32_t* ids, cudaStream_t stream) {
  const bool whole = logits.data != nullptr;
  const auto num_rows = static_cast<int64_t>(rows.size());
  CHECK(!whole || (logits.dtype == DType::kF32 && logits.rows() == num_rows && logits.cols() > 0));
  const int64_t splits = scans.cols() / kScanFloats;
  CHECK(scans.dtype == DType::kF32 && scans.contiguous() && scans.rows() == num_rows &&
        scans.cols() % kScanFloats == 0 && splits >= 1 && splits <= kThreads);
  if (rows.empty()) return;
  static const cudaError_t allowed =
      cudaFuncSetAttribute(finish_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kListBytes);
  check_cuda(allowed, "shared memory for sampling");
  launch("sampling", finish_kernel, static_cast<unsigned>(num_rows), kThreads, kListBytes, stream,
      logits.as<float>(), whole ? logits.stride / 4 : 0,
      whole ? static_cast<int32_t>(logits.cols()) : 0, rows.data(), scans.as<Scan>(),
      static_cast<int32_t>(splits), results, ids);
}

}  // namespace millrace::cuda
