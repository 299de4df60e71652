#include "engine/kernels/cpu/vec_neon.h"

#include "engine/kernels/cpu/kernels_body.h"

const millrace::CpuKernels& millrace::kernels_neon() { return kLevel; }
