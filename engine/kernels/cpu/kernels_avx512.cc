#include "engine/kernels/cpu/vec_avx512.h"

#include "engine/kernels/cpu/kernels_body.h"

const millrace::CpuKernels& millrace::kernels_avx512() { return kLevel; }
