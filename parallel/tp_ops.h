// Tensor parallelism's verbs: what a sharded layer does besides its local kernels. The only place,
// with linear, embedding and head layers, that knows of it. Compute thread only.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>

#include "comm/device_comm.h"
#include "engine/kernels/ops.h"

namespace millrace {

class TpOps {
 public:
  // `comm` outlives this.
  explicit TpOps(DeviceComm& comm) : comm_(comm) {}

  int rank() const { return comm_.rank(); }
  int size() const { return comm_.size(); }
  // After a row-parallel linear or the vocabulary-parallel embedding: x = sum over ranks.
  void reduce(const TensorView& x);
  // After a row-parallel linear: residual += sum over ranks of x, then out = rms_norm(residual); no
  // norm where `weight` is an empty view. x is overwritten.
  void reduce_add_norm(Ops& ops, const TensorView& x, const TensorView& residual,
      const TensorView& weight, float eps, const TensorView& out);
  // One norm over columns that lie on several ranks.
  struct SharedNorm {
    TensorView x;          // act [T, n], this rank's columns, normed in place; rows may be strided
    TensorView weight;     // f32 [n]
    int64_t count = 0;     // columns of all ranks
    bool is_copy = false;  // another rank holds the same columns and counts them
  };
  // Of q and k at once. sums: f32 [T, 2], room.
  void norm_shared(
      Ops& ops, std::span<const SharedNorm, 2> norms, float eps, const TensorView& sums);
  // After the vocabulary-parallel head: f32 [R, sum of widths], the columns of all ranks side by
  // side, the same on every rank. It lies in `room`, or is `mine` in a group of one.
  TensorView gather_cols(
      const TensorView& mine, std::span<const int64_t> widths, const TensorView& room);
  // Time spent in collectives since the last call.
  std::chrono::nanoseconds take_wait_time();

 private:
  DeviceComm& comm_;
  std::chrono::nanoseconds waited_{0};
};

}  // namespace millrace
