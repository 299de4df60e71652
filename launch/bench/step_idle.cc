#include "launch/bench/step_idle.h"

#include <utility>

namespace millrace {

void StepIdle::add(int rank, const StepTrace& step) {
  if (step.rows == 0) return;  // keeps the plans of a pipeline in step, computes nothing
  const bool decodes = step.rows == step.tokens;
  const std::lock_guard lock(mutex_);
  const int64_t before = std::exchange(decoded_until_[rank], decodes ? step.end : 0);
  if (before == 0 || !decodes) return;
  idle_ += static_cast<double>(step.ready - before);
  total_ += static_cast<double>(step.end - before);
}

void StepIdle::reset() {
  const std::lock_guard lock(mutex_);
  idle_ = total_ = 0;
}

double StepIdle::fraction() const {
  const std::lock_guard lock(mutex_);
  return total_ > 0 ? idle_ / total_ : 0;
}

}  // namespace millrace
