#include "parallel/tp_ops.h"

#include <utility>

namespace millrace {

using Clock = std::chrono::steady_clock;

void TpOps::reduce(const TensorView& x) {
  if (comm_.size() == 1) return;
  const auto begin = Clock::now();
  comm_.all_reduce_sum(x);
  waited_ += Clock::now() - begin;
}

void TpOps::reduce_add_norm(Ops& ops, const TensorView& x, const TensorView& residual,
    const TensorView& weight, float eps, const TensorView& out) {
  if (weight.data == nullptr) {
    reduce(x);
    ops.add(residual, x);
    return;
  }
  const auto begin = Clock::now();
  const bool fused = comm_.all_reduce_add_norm(x, residual, weight, eps, out);
  waited_ += Clock::now() - begin;
  if (fused) return;
  reduce(x);
  ops.add_rms_norm(x, residual, weight, eps, out);
}

void TpOps::gather_logits(
    const TensorView& mine, std::span<const int64_t> shard_sizes, const TensorView& out) {
  const auto begin = Clock::now();
  comm_.all_gather_cols(mine, shard_sizes, out);
  waited_ += Clock::now() - begin;
}

std::chrono::nanoseconds TpOps::take_wait_time() {
  return std::exchange(waited_, std::chrono::nanoseconds(0));
}

}  // namespace millrace
