// out = x · wᵀ (+ bias) on a GPU: cuBLASLt, and an own kernel for few rows where it is faster.
// Which algorithm a shape uses is measured once (tune) and kept on disk by GPU and library version;
// an untuned shape takes cuBLASLt's first proposal.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>

#include "engine/core/tensor.h"

namespace millrace::cuda {

class Gemm {
 public:
  // cache_file may be empty: nothing is read or kept. One stream, one thread.
  Gemm(cudaStream_t stream, std::string cache_file);
  ~Gemm();
  // x: act [M, K]; w: act [N, K]; bias: act [N] or an empty view; out: act or f32 [M, N]; rows of
  // all may be strided. fp32 products stay fp32 (no TF32). Capturable; never allocates after the
  // first call of a shape.
  void run(const TensorView& x, const TensorView& w, const TensorView& bias, const TensorView& out);
  // Measures the candidates for this shape on the given memory (out is overwritten) and keeps the
  // best for M in (its bucket); does nothing when the cache has it. Not capturable.
  void tune(
      const TensorView& x, const TensorView& w, const TensorView& bias, const TensorView& out);
  // Writes the cache file if tune() added to it (atomically: a rename).
  void save() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// gemv.cu: the own kernel. True when it takes these views: M <= 16, K a multiple of 8, f16 or bf16,
// rows of x and w at multiples of 16 bytes.
bool skinny_gemm_supports(const TensorView& x, const TensorView& w, const TensorView& out);
void skinny_gemm(const TensorView& x, const TensorView& w, const TensorView& bias,
    const TensorView& out, cudaStream_t stream);
// Every row of out (act or f32 [M, N]) = row (act [N]); M <= 65535.
void fill_rows(const TensorView& row, const TensorView& out, cudaStream_t stream);

}  // namespace millrace::cuda
