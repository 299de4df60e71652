// Inside the room: the tensor-parallel group's own kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <span>

#include "comm/device_comm.h"

namespace millrace::cuda {

constexpr int kMaxOneShotRanks = 8;
constexpr int kMaxGatherRanks = 64;
constexpr int kOneShotBlocks = 128;  // at most, two on an SM: all must run at once
constexpr int kBlockUnits = 2048;    // of 8 bytes that a block takes at most, from each rank

// The largest sum (bytes of x) that one shot is used for among `size` ranks: beyond it NCCL wins.
// With the norm behind it, it wins for longer.
constexpr int64_t one_shot_limit(int size) { return size == 2 ? 2 << 20 : 256 << 10; }
constexpr int64_t one_shot_norm_limit(int size) { return size <= 4 ? (4 << 20) / size : 256 << 10; }
static_assert(int64_t{8} * kBlockUnits * kOneShotBlocks >= one_shot_limit(2));
// Packets of 16 bytes carry a unit; a rank has room for two sums from every rank.
static_assert(one_shot_inbox_bytes(1) == int64_t{16} * 2 * kOneShotBlocks * kBlockUnits);

// What the kernel needs to know of the group; all zeroed before the first sum. One stream per
// group.
struct OneShotGroup {
  int rank = 0;
  int size = 1;
  // No rank needs another stream's kernel to reach its sum, so that the next kernels may take
  // places on the GPU while this one waits for the others.
  bool alone = false;
  void* inboxes[kMaxOneShotRanks] = {};  // each rank's, as mapped here
  uint32_t* epochs = nullptr;            // [kOneShotBlocks], this rank's, on the device
  const uint32_t* abort = nullptr;       // mapped host memory: nothing waits any longer once not 0
};

// x (f32, f16 or bf16, contiguous, a multiple of 8 bytes, at most one_shot_limit) = sum over ranks
// in rank order, added in fp32: the same bits on every rank.
bool one_shot_supports(int size, const TensorView& x);
void one_shot_all_reduce(const OneShotGroup& group, const TensorView& x, cudaStream_t stream);

// residual += sum over ranks of x, in fp32 and rank order, then out = rms_norm(residual) · weight
// (f32 [H]); x, residual, out: one dtype, [T, H], contiguous, rows a multiple of 8 bytes. The same
// bits on every rank. out may be x.
bool one_shot_add_norm_supports(int size, const TensorView& x);
void one_shot_add_norm(const OneShotGroup& group, const TensorView& x, const TensorView& residual,
    const TensorView& weight, float eps, const TensorView& out, cudaStream_t stream);

// out (f32 [T, sum of cols], contiguous): row t is the rows t of all ranks side by side. gathered:
// f32 [T, cols[r]] of each rank r, one after another.
void interleave_cols(const void* gathered, std::span<const int64_t> cols, const TensorView& out,
    cudaStream_t stream);

}  // namespace millrace::cuda
