// The portable kernels: the bodies over the vectors of vec_portable.h. Only this file is compiled
// with their flags (CMakeLists.txt), and it leaves no inline function or template of a shared
// header behind that the linker could give to another.
#include "engine/kernels/cpu/vec_portable.h"

#include "engine/kernels/cpu/kernels.h"

// These are written over the vectors above, so they come after.
#include "engine/kernels/cpu/math_body.h"

#include "engine/kernels/cpu/attention_body.h"
#include "engine/kernels/cpu/block_linear_body.h"
#include "engine/kernels/cpu/linear_body.h"
#include "engine/kernels/cpu/rows_body.h"

namespace millrace {

const CpuKernels& kernels_portable() {
  static constexpr CpuKernels kTable = {kLevelName, linear, quantize_row, block_linear, widen,
      rms_norm, add, gate_mul, soft_cap, rope, attention, finite_max, scaled_exp};
  return kTable;
}

}  // namespace millrace
