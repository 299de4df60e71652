#include "engine/kernels/cpu/vec_portable.h"

#include "engine/kernels/cpu/kernels_body.h"

const millrace::CpuKernels& millrace::kernels_portable() { return kLevel; }
