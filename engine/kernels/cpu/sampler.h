// One row of logits to one token. Runs on any thread of the pool.
#pragma once

#include <span>

#include "engine/kernels/cpu/kernels.h"
#include "engine/kernels/ops.h"

namespace millrace {

// As Ops::sample says. Tokens that tie at the border of top-k or top-p stay in, all of them.
SampledRow sample_row(
    const CpuKernels& kernels, std::span<const float> logits, const SampleRow& row);

}  // namespace millrace
