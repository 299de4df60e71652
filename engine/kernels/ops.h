// The closed list of verbs a model is made of. Outputs are given by the caller; every tensor and
// every array behind a span or pointer lies on the backend's device, only sizes are the host's.
// Called from the worker's compute thread only; a GPU's verbs return when the work is enqueued.
//
// Shapes: T tokens of the step, S sequences (rows of the plan), R rows that give logits, H hidden
// size, V vocabulary, Hq / Hkv query / KV heads of this rank, D head size. "act" is the device's
// activation dtype: f32 on the CPU; f32, f16 or bf16 on a GPU. Sums are fp32 everywhere.
//
// Batch invariance (CPU): each verb computes a token's row with the same operations in the same
// order whatever T and S are, so a request's numbers do not depend on its company.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

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
  // Hints for kernels that must know on the host how work is cut: the first num_single sequences
  // have one token each (decode), and no sequence has more than max_count.
  int32_t num_single = 0;
  int32_t max_count = 0;
  int32_t num_sequences() const { return static_cast<int32_t>(cu_tokens.size()) - 1; }
};

// One layer's cache on this rank: k and v are act [num_blocks, Hkv, block_size, D], so that a
// head's rows of one block are contiguous.
struct KvCacheView {
  TensorView k;
  TensorView v;
};

// The first P <= D elements of a head are rotated, the others stay. No table (an empty view): none.
struct RopeTable {
  Tensor cos_sin;  // f32 [max_position, P]: P/2 cosines, then P/2 sines; attention factor in
  bool interleaved = false;  // pairs (2i, 2i+1) as GGUF's Llama files; else (i, i + P/2)
};

// Norms of each head of q and of k by itself, before the rotation. Empty views: none.
struct HeadNorms {
  TensorView q;  // f32 [D]
  TensorView k;  // f32 [D]
  float eps = 0;
};

// Layers of one model differ in `window` alone. Those that have one have the same: the shape that
// a backend and begin_step are given holds it.
struct AttentionShape {
  int32_t num_heads = 0;     // Hq
  int32_t num_kv_heads = 0;  // Hkv; divides Hq
  int32_t head_dim = 0;      // D
  float scale = 0;           // of q·k, usually 1/sqrt(D)
  int32_t window = 0;        // keys seen back from a token, itself included; 0: all
  float softcap = 0;         // c: the softmax is of c * tanh(scale * q·k / c); 0: of scale * q·k
  bool operator==(const AttentionShape&) const = default;
};

// What a gated MLP does to its gate. kGeluTanh: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
enum class Activation : uint8_t { kSilu, kGeluTanh };

// How one row of logits becomes a token.
struct SampleRow {
  const SamplingParams* params = nullptr;
  uint64_t position = 0;  // of the token being drawn, for the noise
  // The sequence so far, for penalties: num_prompt ids of the prompt, then what was sampled.
  const int32_t* ids = nullptr;
  int32_t num_prompt = 0;
  int32_t num_ids = 0;
  const TokenBias* biases = nullptr;
  int32_t num_biases = 0;
  int32_t scored = -1;  // a known id: it is "drawn", and logprobs are those asked for the prompt

  constexpr int32_t num_logprobs() const {
    return scored >= 0 ? params->num_prompt_logprobs : params->num_logprobs;
  }
  // The token is drawn from other logits than the model's.
  constexpr bool changes_logits() const {
    return scored < 0 && (params->has_penalties() || num_biases > 0);
  }
  constexpr bool filters() const { return scored < 0 && params->has_filters(); }
};

struct SampledRow {
  int32_t token = 0;
  float logprob = 0;    // of the model's own distribution, where logprobs were asked for
  int32_t finite = 1;   // 0: the row held NaN or infinity, the rest means nothing
  int32_t num_top = 0;  // entries of `top`, best first
  TokenLogprob top[kMaxLogprobs];
};

// What a rank keeps of each slot on its device, one row per slot: begin_step writes it.
struct SlotState {
  TensorView ids;           // i32 [slots, max_position + 1]: known token ids by position
  TensorView block_tables;  // i32 [slots, most blocks of a sequence]
  int32_t* num_prompt = nullptr;
  SamplingParams* sampling = nullptr;
  TokenBias* biases = nullptr;  // kMaxLogitBias a slot
  int32_t* num_biases = nullptr;
};

// A step as the host writes it and one copy uploads it: a header, then sections of 32-bit words at
// the offsets (in words from the header's begin) that the header names. Row s with slot -1 pads a
// batch to a captured size: it reads ids 0 and writes the cache's last block.
struct StepHeader {
  int32_t num_sequences, num_tokens, num_outputs, num_arrivals, num_new_blocks, num_admissions;
  int32_t num_scored;  // of the outputs, the last ones: their next id is known
  int32_t slots;       // [S]
  int32_t first;       // [S] position of the row's first token
  int32_t cu_tokens;   // [S + 1]
  int32_t outputs;     // [R] tokens that give logits
  int32_t arrivals;    // [num_arrivals, 3] slot, position, index of the id in `arrived`
  int32_t new_blocks;  // [num_new_blocks, 3] slot, index in its table, block
  int32_t admissions;  // AdmittedSlot[num_admissions], 8-byte aligned
  int32_t ids;         // of all admissions, one after another, each with its biases behind
};
struct AdmittedSlot {
  int32_t slot, num_prompt;
  int32_t first_id, num_ids;  // in the section `ids`
  int32_t num_biases;         // TokenBias, behind the ids
  SamplingParams sampling;
};

// What begin_step makes of it, in memory of the caller sized for the largest step.
struct StepArrays {
  int32_t* ids = nullptr;                   // [T]
  int32_t* positions = nullptr;             // [T]
  const uint32_t** block_tables = nullptr;  // [S]
  int32_t* output_tokens = nullptr;         // [R] the section `outputs`
  SampleRow* sample_rows = nullptr;         // [R]
  const uint32_t* padding_block = nullptr;  // the block table of padding rows
};

class Ops {
 public:
  virtual ~Ops() = default;

  // Takes admissions, new blocks and arrived ids into `slots` (in this order), then fills `arrays`
  // for the rows. `batch` has the step's sizes; only they are the host's, so that a captured step
  // is replayed with other contents. arrived: ids sampled by former steps, i32.
  virtual void begin_step(const StepHeader* step, const int32_t* arrived, const SlotState& slots,
      const StepArrays& arrays, const BatchView& batch, const AttentionShape& shape) = 0;

  // Makes of a matrix as files store it, in memory of Device::tensor, what linear() and embed()
  // read. Once for each that is loaded; a view of it is then of all its rows and columns.
  virtual void pack_weights(const TensorView& /*w*/) {}
  // out[t] = scale * table[ids[t] - first_id], or zeros when the id lies outside this shard's rows.
  // table: [rows, H] any dtype; out: act [T, H], rounded once.
  virtual void embed(std::span<const int32_t> ids, int32_t first_id, const TensorView& table,
      float scale, const TensorView& out) = 0;
  // out = x / rms(x) * weight. x, out: act [T, H], rows may be strided; weight: f32 [H]. In place
  // allowed.
  virtual void rms_norm(
      const TensorView& x, const TensorView& weight, float eps, const TensorView& out) = 0;
  // residual += x, then out = rms_norm(residual).
  virtual void add_rms_norm(const TensorView& x, const TensorView& residual,
      const TensorView& weight, float eps, const TensorView& out) = 0;
  // residual += rms_norm(x) with the weight `post`, then out = rms_norm(residual); without the
  // latter where `weight` is an empty view. x, residual, out: act [T, H]; weights: f32 [H].
  virtual void norm_add_norm(const TensorView& x, const TensorView& post,
      const TensorView& residual, const TensorView& weight, float eps, const TensorView& out) = 0;
  // A norm over columns that ranks share: sums[t] = sum of x[t]²; then, of the sums over ranks,
  // x[t] *= weight / sqrt(sums[t] / count + eps). x: act [T, n], rows may be strided; sums: f32
  // [T, 1], rows may be strided; weight: f32 [n]; count: columns of all ranks.
  virtual void sum_squares(const TensorView& x, const TensorView& sums) = 0;
  virtual void scale_by_rms(const TensorView& x, const TensorView& sums, int64_t count,
      const TensorView& weight, float eps) = 0;
  // out = x · wᵀ (+ bias). x: act [T, K]; w: [N, K] of a dtype that Device::weight_dtype gives;
  // bias: act [N] or an empty view; out: act or f32 [T, N], its rows may be strided.
  virtual void linear(
      const TensorView& x, const TensorView& w, const TensorView& bias, const TensorView& out) = 0;
  // to += x · wᵀ (+ bias). to: act [T, N]; scratch: act [T, N], may be written.
  virtual void linear_add(const TensorView& x, const TensorView& w, const TensorView& bias,
      const TensorView& scratch, const TensorView& to) {
    linear(x, w, bias, scratch);
    add(to, scratch);
  }
  // out = act(x · gateᵀ) * (x · upᵀ), biases added before. w: [2 I, K] rows of gate, then of up;
  // scratch: act [T, 2 I], may be written; out: act [T, I].
  virtual void gated_linear(const TensorView& x, const TensorView& w, const TensorView& bias,
      Activation act, const TensorView& scratch, const TensorView& out) {
    linear(x, w, bias, scratch);
    gate_mul(
        scratch.slice_cols(0, out.cols()), scratch.slice_cols(out.cols(), out.cols()), act, out);
  }
  // Norms the heads of q and k, rotates them, q in place, then writes k and v to the cache at each
  // token's position. q: act [T, Hq*D]; k, v: act [T, Hkv*D] (rows may be strided).
  virtual void rope_kv_write(const TensorView& q, const TensorView& k, const TensorView& v,
      const HeadNorms& norms, const RopeTable& rope, const AttentionShape& shape,
      const BatchView& batch, const KvCacheView& cache) = 0;
  // Causal attention of every token over its sequence's cache: positions 0..its own, or the last
  // shape.window of them.
  // q: act [T, Hq*D] (rows may be strided); out: act [T, Hq*D].
  virtual void attention(const TensorView& q, const KvCacheView& cache, const AttentionShape& shape,
      const BatchView& batch, const TensorView& out) = 0;
  // out = act(gate) * up. gate, up: act [T, I] (rows may be strided); out: act [T, I].
  virtual void gate_mul(
      const TensorView& gate, const TensorView& up, Activation act, const TensorView& out) = 0;
  // x += y, both act [T, H].
  virtual void add(const TensorView& x, const TensorView& y) = 0;
  // out[i] = x[rows[i]]: the hidden rows that need logits.
  virtual void gather_rows(
      const TensorView& x, std::span<const int32_t> rows, const TensorView& out) = 0;
  // x = cap * tanh(x / cap). x: f32 [R, N], contiguous.
  virtual void soft_cap(const TensorView& x, float cap) = 0;
  // What a draw needs to know of a part of the vocabulary: f32 [R, scan_cols(R, n)] of `logits`,
  // f32 [R, n], whose first id is a multiple of 4. Where the number of columns is 0, nothing is
  // done.
  virtual int64_t scan_cols(int64_t /*rows*/, int64_t /*n*/) const { return 0; }
  virtual void scan_logits(const TensorView& /*logits*/, int32_t /*first_id*/,
      std::span<const SampleRow> /*rows*/, const TensorView& /*scans*/) {}
  // Draws one token per row into results[i] and ids[i] (null: into results alone). scans: those of
  // all parts of the vocabulary side by side; logits: f32 [R, V], overwritten, or an empty view
  // where there are scans and no row is scored, has biases or needs_all_logits(). Logprobs of the
  // unmodified distribution (as vLLM's raw logprobs), then biases (where only the listed tokens are
  // allowed, all others fall to -1e30), penalties, temperature, top-k, top-p, min-p; the draw is
  // argmax(logit/temperature + Gumbel noise(Philox(seed, position, token id))). Greedy ties go to
  // the lowest id.
  virtual void sample(const TensorView& logits, const TensorView& scans,
      std::span<const SampleRow> rows, SampledRow* results, int32_t* ids) = 0;
};

// `pool` outlives the result. Picks AVX-512, AVX2 or scalar kernels by what the CPU has;
// cpu_kernel_name() says which ("avx512vnni", "avx512", "avx2", "scalar").
std::unique_ptr<Ops> make_cpu_ops(ThreadPool& pool);
const char* cpu_kernel_name();
// What the CPU's verbs keep beside what a Device counts, once they have seen `rows` rows of
// `blocks` columns times a quantized matrix and every thread has drawn from `vocab` logits.
int64_t cpu_scratch_bytes(int threads, int64_t rows, int64_t blocks, int64_t vocab);

// Rows of a quantized or half tensor as fp32, for tables and for widening at load. Any thread.
void widen_rows(const TensorView& from, float* to);

}  // namespace millrace
