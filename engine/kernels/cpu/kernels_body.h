// The kernels of one level: the bodies over the vectors of its vec_*.h, which comes before. Only
// kernels_*.cc include this, and only they are compiled with their level's flags
// (CMakeLists.txt): no inline function or template of a shared header stays behind that the linker
// could give to another.
#pragma once

#include "engine/kernels/cpu/kernels.h"

// These are written over the vectors above, so they come after.
#include "engine/kernels/cpu/math_body.h"

#include "engine/kernels/cpu/attention_body.h"
#include "engine/kernels/cpu/block_linear_body.h"
#include "engine/kernels/cpu/linear_body.h"
#include "engine/kernels/cpu/rows_body.h"

namespace millrace {
namespace {

constexpr CpuKernels kLevel = {kLevelName, linear, quantize_row, block_linear, widen, rms_norm, add,
    gate_mul, soft_cap, rope, attention, finite_max, scaled_exp};

}  // namespace
}  // namespace millrace
