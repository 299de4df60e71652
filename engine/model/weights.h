// Loading a rank's slices of a checkpoint onto its device: what is asked for is allocated at once,
// read in load(). Used while loading, on one thread.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "engine/core/device.h"
#include "engine/kernels/ops.h"
#include "engine/model/checkpoint.h"
#include "parallel/tp_ops.h"

namespace millrace {

// Which part of a linear's weight a rank holds. Column-parallel: some rows (outputs), all columns.
// Row-parallel: all rows, some columns (inputs); the bias then belongs to tensor-parallel rank 0.
struct LinearSlice {
  std::string name;  // "model.layers.0.self_attn.q_proj"; ".weight" and ".bias" are added
  Range rows;
  Range cols;
  bool with_bias = false;
};

// x · Wᵀ + b where W may be several matrices with a common input, their outputs side by side.
// Matrices of one dtype are stored as one, so that they are one kernel call.
class Linear {
 public:
  // x: [T, in]; out: [T, n], n the outputs of all matrices.
  void forward(Ops& ops, const TensorView& x, const TensorView& out) const;
  // Of gate and up side by side: out = act(gate) * up. scratch: [T, 2 I], out: [T, I].
  void forward_gated(Ops& ops, const TensorView& x, Activation act, const TensorView& scratch,
      const TensorView& out) const;
  // Row-parallel: hidden += the sum over ranks of x · Wᵀ + b, itself normed with the weight `post`
  // before, then normed = rms_norm(hidden) with `norm`; no norm where its weight is an empty view.
  // scratch: as hidden [T, H].
  void forward_add_norm(Ops& ops, TpOps& tp, const TensorView& x, const TensorView& scratch,
      const TensorView& hidden, const TensorView& post, const TensorView& norm, float eps,
      const TensorView& normed) const;
  // Without the norm and on one rank: to += x · Wᵀ + b.
  void forward_add(
      Ops& ops, const TensorView& x, const TensorView& scratch, const TensorView& to) const;
  int64_t out_features() const { return out_features_; }
  int64_t in_features() const { return parts_.front().weight.view.cols(); }
  double weight_bytes() const;

  struct Part {
    Tensor weight;       // [n, in]
    Tensor bias;         // act [n], or empty
    int64_t column = 0;  // where its outputs begin
  };

 private:
  friend class WeightLoader;
  std::vector<Part> parts_;
  int64_t out_features_ = 0;
};

class WeightLoader {
 public:
  // All outlive the loader. `on_tensor` is called after each tensor, or piece of a large one
  // (progress), from any thread.
  WeightLoader(const Checkpoint& checkpoint, Device& device, std::function<void()> on_tensor);

  // A vector (norm weight) as f32 [n], `add` added to what is stored.
  Tensor vector(const std::string& name, Range range, float add = 0);
  // A matrix in the dtype that the device holds it in; on the CPU, where that is the stored one, it
  // is widened to f32, with a log line, where `cols` splits a quantized block.
  Tensor matrix(const std::string& name, Range rows, Range cols);
  Linear linear(std::span<const LinearSlice> slices);
  // Reads everything asked for, on several threads; page-locked memory of 8 MB each, whatever the
  // model. Throws Error.
  void load();

  // What the loaded matrices are; Ops::pack_weights has still to see each.
  const std::vector<TensorView>& matrices() const { return matrices_; }
  int64_t bytes() const { return bytes_; }

 private:
  struct Slice {  // at most kPieceBytes of a tensor
    std::string name;
    const TensorInfo* info;
    Range rows, cols;
    TensorView to;
    float add = 0;
  };
  struct Staging;
  DType held_dtype(const std::string& name, Range cols) const;
  void add(const std::string& name, Range rows, Range cols, const TensorView& to, float add = 0);
  void read(const Slice& slice, Staging& staging) const;
  void make_up(const Slice& slice) const;

  const Checkpoint& checkpoint_;
  Device& device_;
  std::function<void()> on_tensor_;
  std::vector<Slice> slices_;
  std::vector<TensorView> matrices_;
  int64_t bytes_ = 0;
};

}  // namespace millrace
