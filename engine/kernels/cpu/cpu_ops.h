// What the files of this folder are to one another, and to tests of one level of kernels.
#pragma once

#include <memory>
#include <span>

#include "engine/kernels/cpu/kernels.h"
#include "engine/kernels/ops.h"

namespace millrace {

// The levels this processor has, best first; "scalar" is always the last. Any thread.
std::span<const CpuKernels* const> cpu_kernel_levels();

// CpuOps over one of them: what make_cpu_ops does with the first. `pool` outlives the result.
std::unique_ptr<Ops> make_cpu_ops_for(ThreadPool& pool, const CpuKernels& kernels);

// Ops::begin_step: one pass over the sections of a step. Every index that the host wrote is held
// against the sizes of `slots` and `batch`. Compute thread.
void begin_step(const StepHeader& step, const int32_t* arrived, const SlotState& slots,
    const StepArrays& arrays, const BatchView& batch);

// One row of logits to one token, as Ops::sample says. Tokens that tie at the border of top-k or
// top-p stay in, all of them. Runs on any thread of the pool.
SampledRow sample_row(
    const CpuKernels& kernels, std::span<const float> logits, const SampleRow& row);

}  // namespace millrace
