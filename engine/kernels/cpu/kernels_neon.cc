// The NEON kernels: the bodies over the vectors of vec_neon.h. Every 64-bit Arm processor has these
// instructions, so no flags are needed.
#include "engine/kernels/cpu/vec_neon.h"

#include "engine/kernels/cpu/kernels.h"

// These are written over the vectors above, so they come after.
#include "engine/kernels/cpu/math_body.h"

#include "engine/kernels/cpu/attention_body.h"
#include "engine/kernels/cpu/block_linear_body.h"
#include "engine/kernels/cpu/linear_body.h"
#include "engine/kernels/cpu/rows_body.h"

namespace millrace {

const CpuKernels& kernels_neon() {
  static constexpr CpuKernels kTable = {kLevelName, linear, quantize_row, block_linear, widen,
      rms_norm, add, gate_mul, soft_cap, rope, attention, finite_max, scaled_exp};
  return kTable;
}

}  // namespace millrace
