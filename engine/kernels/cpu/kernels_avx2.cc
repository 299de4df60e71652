#include "engine/kernels/cpu/vec_avx2.h"

#include "engine/kernels/cpu/kernels_body.h"

const millrace::CpuKernels& millrace::kernels_avx2() { return kLevel; }
