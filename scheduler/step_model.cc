#include "scheduler/step_model.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace millrace {

namespace {

constexpr double kMemory = 0.997;      // what an observation keeps of its weight with the next one
constexpr double kErrorMemory = 0.95;  // the same of the error gauge
constexpr int kSweeps = 4;             // of coordinate descent, from the last solution on

}  // namespace

void StepWork::add_decode(int64_t position) {
  ++decode_rows;
  context += position + 1;
}

void StepWork::add_prefill(int64_t first, int64_t count) {
  prefill_tokens += static_cast<int32_t>(count);
  pairs += first * count + count * (count + 1) / 2;
}

// All terms near 1 for common steps, so that the equations are well scaled. The two knees let the
// fit turn from "bound by reading the weights" to "bound by arithmetic" where the device does. The
// last is what a step with prompts has besides: on a GPU it is no graph.
StepModel::Terms StepModel::terms_of(const StepWork& work) {
  const double tokens = work.tokens();
  return {1, tokens / 256, std::max(0.0, tokens - 64) / 256, std::max(0.0, tokens - 256) / 256,
      static_cast<double>(work.context) / 65536, static_cast<double>(work.pairs) / 262144,
      work.prefill_tokens > 0 ? 1.0 : 0.0};
}

double StepModel::seconds(const StepWork& work) const {
  const Terms terms = terms_of(work);
  double sum = 0;
  for (size_t i = 0; i < terms.size(); ++i) sum += weights_[i] * terms[i];
  return sum;
}

void StepModel::observe(const StepWork& work, double seconds) {
  if (work.tokens() == 0 || !(seconds > 0)) return;
  const double off = std::abs(this->seconds(work) / seconds - 1);
  double weight = 1;
  if (ready()) {
    weight = std::min(1.0, std::max(0.05, 2 * error_) / std::max(off, 1e-9));
    error_ = kErrorMemory * error_ + (1 - kErrorMemory) * std::min(off, 1.0);
  } else if (num_observed_ >= kReadyAfter / 2) {
    error_ += off * 2 / kReadyAfter;
  }
  ++num_observed_;
  // Relative errors are what counts: divided by its time, every step has the target 1.
  Terms terms = terms_of(work);
  for (double& term : terms) term /= seconds;
  for (size_t i = 0; i < terms.size(); ++i) {
    for (size_t j = 0; j < terms.size(); ++j) {
      products_[i][j] = kMemory * products_[i][j] + weight * terms[i] * terms[j];
    }
    targets_[i] = kMemory * targets_[i] + weight * terms[i];
  }
  solve();
}

// Non-negative least squares: each weight in turn takes its best value given the others. A term
// that was not seen for long keeps its weight.
void StepModel::solve() {
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    for (size_t i = 0; i < weights_.size(); ++i) {
      if (products_[i][i] < 1e-12) continue;
      double rest = targets_[i];
      for (size_t j = 0; j < weights_.size(); ++j) {
        if (j != i) rest -= products_[i][j] * weights_[j];
      }
      weights_[i] = std::max(0.0, rest / products_[i][i]);
    }
  }
}

}  // namespace millrace
