// The launchers behind CudaOps. Pointers are device memory, strides count elements, `act` is kF32,
// kF16 or kBF16 and the type of every void pointer unless said otherwise. All enqueue and return;
// none allocates or synchronizes, so each may be captured into a graph.
#pragma once

#include <cuda_runtime_api.h>

#include "engine/kernels/cuda/workspace.h"

namespace millrace::cuda {

// step.cu
void begin_step(const StepHeader* step, const int32_t* arrived, const SlotState& slots,
    const StepArrays& arrays, const BatchView& batch, cudaStream_t stream);

// rows.cu: one row per token
void embed(std::span<const int32_t> ids, int32_t first_id, const TensorView& table, float scale,
    const TensorView& out, cudaStream_t stream);
// residual may be empty: out = rms_norm(x). Else residual += x, out = rms_norm(residual).
void add_rms_norm(const TensorView& x, const TensorView& residual, const TensorView& weight,
    float eps, const TensorView& out, cudaStream_t stream);
void norm_add_norm(const TensorView& x, const TensorView& post, const TensorView& residual,
    const TensorView& weight, float eps, const TensorView& out, cudaStream_t stream);
void sum_squares(const TensorView& x, const TensorView& sums, cudaStream_t stream);
void scale_by_rms(const TensorView& x, const TensorView& sums, int64_t count,
    const TensorView& weight, float eps, cudaStream_t stream);
void gate_mul(const TensorView& gate, const TensorView& up, Activation act, const TensorView& out,
    cudaStream_t stream);
void soft_cap(const TensorView& x, float cap, cudaStream_t stream);
void add(const TensorView& x, const TensorView& y, cudaStream_t stream);
void gather_rows(
    const TensorView& x, std::span<const int32_t> rows, const TensorView& out, cudaStream_t stream);
// For measuring: reads every byte (a multiple of 16) and leaves a sum.
void read_all(const void* from, int64_t bytes, uint32_t* sum, int num_sms, cudaStream_t stream);

// rope.cu
void rope_kv_write(const TensorView& q, const TensorView& k, const TensorView& v,
    const HeadNorms& norms, const RopeTable& rope, const AttentionShape& shape,
    const BatchView& batch, const KvCacheView& cache, cudaStream_t stream);

// sample.cu: as Ops says.
int64_t scan_cols(int64_t rows, int64_t n);
void scan_logits(const TensorView& logits, int32_t first_id, std::span<const SampleRow> rows,
    const TensorView& scans, cudaStream_t stream);
void sample(const TensorView& logits, const TensorView& scans, std::span<const SampleRow> rows,
    SampledRow* results, int32_t* ids, cudaStream_t stream);

// attention.cu, attention_prefill.cu, attention_decode.cu
// Once per step, before its layers: how the step's attention is cut into equal pieces of work, from
// the batch's positions, into `workspace`; for layers with the window of `limits` and without.
void plan_attention(
    const AttentionLimits& limits, const BatchView& batch, void* workspace, cudaStream_t stream);
// Ops::attention with the plan made for the same batch.
void attention(const AttentionLimits& limits, const AttentionShape& shape, const TensorView& q,
    const KvCacheView& cache, const BatchView& batch, void* workspace, const TensorView& out,
    cudaStream_t stream);

}  // namespace millrace::cuda
