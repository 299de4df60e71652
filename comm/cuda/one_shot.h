// Inside the room: the tensor-parallel group's own kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <span>

#include "engine/core/tensor.h"

namespace millrace::cuda {

constexpr int kMaxOneShotRanks = 8;
constexpr int kOneShotBlocks = 128;
constexpr int kMaxGatherRanks = 64;

// The largest sum (bytes of x) that one shot is used for among `size` ranks: beyond it NCCL wins.
constexpr int64_t one_shot_limit(int size) { return size == 2 ? 2 << 20 : 256 << 10; }
// Packets of 16 bytes carry 8 of data; a rank has room for two sums from every rank.
constexpr int64_t one_shot_inbox_bytes(int size) { return 2 * size * 2 * one_shot_limit(size); }

// What the kernel needs to know of the group; all zeroed before the first sum.
struct OneShotGroup {
  int rank = 0;
  int size = 1;
  void* inboxes[kMaxOneShotRanks] = {};  // each rank's, as mapped here
  uint32_t* epochs = nullptr;            // [kOneShotBlocks], this rank's, on the device
  const uint32_t* abort = nullptr;       // mapped host memory: nothing waits any longer once not 0
};

// x (f32, f16 or bf16, contiguous, a multiple of 8 bytes, at most one_shot_limit) = sum over ranks
// in rank order, added in fp32: the same bits on every rank.
void one_shot_all_reduce(const OneShotGroup& group, const TensorView& x, cudaStream_t stream);

// out (f32 [T, sum of cols], contiguous): row t is the rows t of all ranks side by side. gathered:
// f32 [T, cols[r]] of each rank r, one after another.
void interleave_cols(const void* gathered, std::span<const int64_t> cols, const TensorView& out,
    cudaStream_t stream);

}  // namespace millrace::cuda
