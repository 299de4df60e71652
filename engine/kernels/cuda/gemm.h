// out = x · wᵀ (+ bias) on a GPU: cuBLASLt, and own kernels for few rows where they are faster.
// Which algorithm a shape uses is measured once (tune) and kept on disk by GPU and library version;
// an untuned shape takes cuBLASLt's first proposal.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <optional>
#include <string>

#include "engine/core/tensor.h"
#include "engine/kernels/cuda/workspace.h"

namespace millrace::cuda {

class Gemm {
 public:
  // cache_file may be empty: nothing is read or kept. One stream, one thread.
  Gemm(cudaStream_t stream, std::string cache_file);
  ~Gemm();
  // x: act [M, K]; w: act [N, K]; bias: act [N] or an empty view; out: act or f32 [M, N]; rows of
  // all may be strided. fp32 products stay fp32 (no TF32). Capturable; never allocates after the
  // first call of a shape.
  // adds: to what out (act) holds; there is no bias then.
  void run(const TensorView& x, const TensorView& w, const TensorView& bias, const TensorView& out,
      bool adds = false);
  // Measures the candidates for this shape on the given memory (out is overwritten) and keeps the
  // best for M in (its bucket); does nothing when the cache has it. Not capturable.
  void tune(
      const TensorView& x, const TensorView& w, const TensorView& bias, const TensorView& out);
  // out = act(x · gateᵀ) * (x · upᵀ) in one launch, w [2 I, K] gate's rows, then up's; false, and
  // nothing is done, where two are faster.
  bool run_gated(const TensorView& x, const TensorView& w, const TensorView& bias, Activation act,
      const TensorView& out) const;
  // Writes the cache file if tune() added to it (atomically: a rename).
  void save() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// gemm_hopper.cu: the own kernel for Hopper. True when it takes these views: M <= 128, N a multiple
// of 16, K of 8, f16 or bf16, rows at multiples of 16 bytes.
bool stream_gemm_supports(
    const TensorView& x, const TensorView& w, const TensorView& out, bool gated);
// stream_workspace_bytes() of device memory, zeros before the first product; one stream's.
struct StreamWorkspace {
  void* data = nullptr;
  int num_sms = 0;
};
// gate: w [2 I, K], out [M, I] = gate(first half) * second half. adds: to what out holds.
void stream_gemm(const TensorView& x, const TensorView& w, const TensorView& bias,
    const TensorView& out, std::optional<Activation> gate, bool adds, const StreamWorkspace& space,
    cudaStream_t stream);

// gemv.cu: the own kernel for any GPU. True when it takes these views: M <= 16, K a multiple of 8,
// f16 or bf16, rows of x and w at multiples of 16 bytes.
bool skinny_gemm_supports(const TensorView& x, const TensorView& w, const TensorView& out);
void skinny_gemm(const TensorView& x, const TensorView& w, const TensorView& bias,
    const TensorView& out, bool adds, cudaStream_t stream);
// A kernel of one thread that writes x as it is.
void touch(const TensorView& x, cudaStream_t stream);
// Every row of out (act or f32 [M, N]) = row (act [N]); M <= 65535.
void fill_rows(const TensorView& row, const TensorView& out, cudaStream_t stream);

}  // namespace millrace::cuda
