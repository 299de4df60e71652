// Ops::begin_step on the CPU: one pass over the sections of a step. Compute thread.
#pragma once

#include "engine/kernels/ops.h"

namespace millrace {

// Every index that the host wrote is held against the sizes of `slots` and `batch`.
void begin_step(const StepHeader& step, const int32_t* arrived, const SlotState& slots,
    const StepArrays& arrays, const BatchView& batch);

}  // namespace millrace
