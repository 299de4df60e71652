// The closed list of verbs a model is made of. Outputs are given by the caller; all tensors lie on
// the backend's device. Called from the worker's compute thread only.
//
// Shapes: T tokens of the step, S sequences (rows of the plan), H hidden size, V vocabulary,
// Hq / Hkv query / KV heads of this rank, D head size. Activations are fp32 on the CPU.
//
// Batch invariance (CPU): each verb computes a token's row with the same operations in the same
// order whatever T and S are, so a request's numbers do not depend on its company.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/base/thread_pool.h"
#include "engine/core/tensor.h"
#include "engine/protocol/request.h"

namespace millrace {

// The step as attention sees it: S sequences' tokens lie one after another in T rows.
struct BatchView {
  int32_t num_tokens = 0;              // T
  int32_t block_size = 16;             // tokens per KV block, a power of two
  std::span<const int32_t> cu_tokens;  // [S + 1] prefix sums: rows of sequence s
  std::span<const int32_t> positions;  // [T] position of each token in its sequence
  std::span<const uint32_t* const>
      block_tables;  // [S] each with ceil((last position+1)/block_size) ids
  int32_t num_sequences() const { return static_cast<int32_t>(cu_tokens.size()) - 1; }
};

// One layer's cache on this rank: k and v are [num_blocks, Hkv, block_size, D], so that a head's
// rows of one block are contiguous.
struct KvCacheView {
  TensorView k;
  TensorView v;
};

struct RopeTable {
  Tensor cos_sin;  // f32 [max_position, D]: D/2 cosines, then D/2 sines; attention factor in
  bool interleaved = false;  // pairs (2i, 2i+1) as GGUF's Llama files; else (i, i + D/2)
};

struct AttentionShape {
  int32_t num_heads = 0;     // Hq
  int32_t num_kv_heads = 0;  // Hkv; divides Hq
  int32_t head_dim = 0;      // D
  float scale = 0;           // of q·k, usually 1/sqrt(D)
  int32_t window = 0;        // keys seen back from a token, itself included; 0: all
};

// How one row of logits becomes a token.
struct SampleRow {
  const SamplingParams* params = nullptr;
  uint64_t position = 0;  // of the token being drawn, for the noise
  // For penalties only; empty without them. Ids may repeat.
  std::span<const int32_t> prompt_ids;
  std::span<const int32_t> output_ids;
};

struct SampleResult {
  bool finite = true;  // false: the row holds NaN or infinity, `token` is meaningless
  SampledToken token;
};

class Ops {
 public:
  virtual ~Ops() = default;

  // out[t] = table[ids[t] - first_id], or zeros when the id lies outside this shard's rows.
  // table: [rows, H] any dtype; out: f32 [T, H].
  virtual void embed(std::span<const int32_t> ids, int32_t first_id, const TensorView& table,
      const TensorView& out) = 0;
  // out = x / rms(x) * weight. x, out: f32 [T, H]; weight: f32 [H]. In place allowed.
  virtual void rms_norm(
      const TensorView& x, const TensorView& weight, float eps, const TensorView& out) = 0;
  // residual += x, then out = rms_norm(residual).
  virtual void add_rms_norm(const TensorView& x, const TensorView& residual,
      const TensorView& weight, float eps, const TensorView& out) = 0;
  // out = x · wᵀ (+ bias). x: f32 [T, K]; w: [N, K] any dtype, rows as stored; bias: f32 [N] or an
  // empty view; out: f32 [T, N], its rows may be strided.
  virtual void linear(
      const TensorView& x, const TensorView& w, const TensorView& bias, const TensorView& out) = 0;
  // Rotates q in place and k, then writes k and v to the cache at each token's position.
  // q: f32 [T, Hq*D]; k, v: f32 [T, Hkv*D] (rows may be strided); cache: f32.
  virtual void rope_kv_write(const TensorView& q, const TensorView& k, const TensorView& v,
      const RopeTable& rope, const AttentionShape& shape, const BatchView& batch,
      const KvCacheView& cache) = 0;
  // Causal attention of every token over its sequence's cache, positions 0..its own.
  // q: f32 [T, Hq*D] (rows may be strided); out: f32 [T, Hq*D].
  virtual void attention(const TensorView& q, const KvCacheView& cache, const AttentionShape& shape,
      const BatchView& batch, const TensorView& out) = 0;
  // out = silu(gate) * up. gate, up: f32 [T, I] (rows may be strided); out: f32 [T, I].
  virtual void silu_mul(const TensorView& gate, const TensorView& up, const TensorView& out) = 0;
  // x += y, both f32 [T, H].
  virtual void add(const TensorView& x, const TensorView& y) = 0;
  // out[i] = x[rows[i]]: the hidden rows that need logits.
  virtual void gather_rows(
      const TensorView& x, std::span<const int32_t> rows, const TensorView& out) = 0;
  // Draws one token per row. logits: f32 [R, V], overwritten. Penalties, then logprobs of the
  // unmodified distribution (as vLLM's raw logprobs), then temperature, top-k, top-p, min-p; the
  // draw is argmax(logit/temperature + Gumbel noise(Philox(seed, position, token id))).
  // Greedy ties go to the lowest id.
  virtual void sample(const TensorView& logits, std::span<const SampleRow> rows,
      std::span<SampleResult> results) = 0;
};

// `pool` outlives the result. Picks AVX-512, AVX2 or scalar kernels by what the CPU has;
// cpu_kernel_name() says which ("avx512", "avx2", "scalar").
std::unique_ptr<Ops> make_cpu_ops(ThreadPool& pool);
const char* cpu_kernel_name();

// Rows of a quantized or half tensor as fp32, for tables and for widening at load. Any thread.
void widen_rows(const TensorView& from, float* to);

}  // namespace millrace
