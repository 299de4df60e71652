#include "parallel/tp_ops.h"

#include <numeric>
#include <utility>

#include "engine/base/check.h"

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

void TpOps::norm_shared(
    Ops& ops, std::span<const SharedNorm, 2> norms, float eps, const TensorView& sums) {
  if (comm_.size() == 1) {
    for (const SharedNorm& norm : norms) ops.rms_norm(norm.x, norm.weight, eps, norm.x);
    return;
  }
  for (int64_t i = 0; i < 2; ++i) {
    const SharedNorm& norm = norms[static_cast<size_t>(i)];
    ops.sum_squares(norm.is_copy ? norm.x.slice_cols(0, 0) : norm.x, sums.slice_cols(i, 1));
  }
  reduce(sums);
  for (int64_t i = 0; i < 2; ++i) {
    const SharedNorm& norm = norms[static_cast<size_t>(i)];
    ops.scale_by_rms(norm.x, sums.slice_cols(i, 1), norm.count, norm.weight, eps);
  }
}

TensorView TpOps::gather_cols(
    const TensorView& mine, std::span<const int64_t> widths, const TensorView& room) {
  if (comm_.size() == 1) return mine;
  const int64_t width = std::accumulate(widths.begin(), widths.end(), int64_t{0});
  const TensorView out(room.data, DType::kF32, {mine.rows(), width});
  CHECK(out.count() <= room.count(), "{} columns of {} rows", width, mine.rows());
  const auto begin = Clock::now();
  comm_.all_gather_cols(mine, widths, out);
  waited_ += Clock::now() - begin;
  return out;
}

std::chrono::nanoseconds TpOps::take_wait_time() {
  return std::exchange(waited_, std::chrono::nanoseconds(0));
}

}  // namespace millrace
