// Hopper's asynchronous instructions (PTX ISA 9.7, sm_90a): barriers in shared memory, tensor
// copies (TMA), and products of a warpgroup (wgmma) with fp32 sums.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <array>
#include <cstdint>
#include <type_traits>

#include "engine/core/cuda/cuda_device.h"

// Only in code for sm_90a: its instructions exist on no other GPU, older or newer.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define MILLRACE_ON_HOPPER 1
#endif

namespace millrace::cuda::hopper {

// Whether the GPU is one and this build has code for it.
inline bool available() {
#ifdef MILLRACE_SM90A
  static const bool yes = [] {
    int device = 0, major = 0, minor = 0;
    check_cuda(cudaGetDevice(&device), "cudaGetDevice");
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    return major == 9 && minor == 0;
  }();
  return yes;
#else
  return false;
#endif
}

// Boxes of up to four dimensions of a tensor, innermost first, 64 elements of 2 bytes wide; strides
// (of dimensions 1 to 3) in bytes, multiples of 16. What lies outside the tensor reads as zeros.
template <typename T>
CUtensorMap tensor_map(const T* tensor, const std::array<int64_t, 4>& sizes,
    const std::array<int64_t, 3>& strides, const std::array<cuuint32_t, 4>& box) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check_cuda(cudaGetDriverEntryPointByVersion(
                   "cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
        "finding cuTensorMapEncodeTiled");
    CHECK(found == cudaDriverEntryPointSuccess, "the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  const cuuint32_t steps[] = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult result = encode(&map,
      std::is_same_v<T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
      4, const_cast<T*>(tensor), reinterpret_cast<const cuuint64_t*>(sizes.data()),
      reinterpret_cast<const cuuint64_t*>(strides.data()), box.data(), steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled: error {}", static_cast<int>(result));
  return map;
}

// --- barriers: a phase ends when `count` threads have arrived and all announced bytes are there.
using Barrier = uint64_t;

#ifdef MILLRACE_ON_HOPPER

__device__ __forceinline__ uint32_t address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
__device__ __forceinline__ void init(Barrier* barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address(barrier)), "r"(count)
               : "memory");
}
__device__ __forceinline__ void arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address(barrier)) : "memory");
}
__device__ __forceinline__ void arrive_expecting(Barrier* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(barrier)), "r"(bytes)
      : "memory");
}
// Returns when the phase of this parity has ended; of a fresh barrier, parity 1 counts as ended.
__device__ __forceinline__ void wait(Barrier* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(address(barrier)),
      "r"(parity)
      : "memory");
}
// What this thread wrote to shared memory is seen by copies and products that begin later.
__device__ __forceinline__ void fence_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Among `kCount` threads, those of whole warps; `id` from 1 on.
template <int kCount = 128>
__device__ __forceinline__ void sync_some(int id) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(kCount) : "memory");
}
template <int kCount>
__device__ __forceinline__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// Starts the copy of one box of a tensor; the barrier hears of its bytes.
__device__ __forceinline__ void copy_box(
    void* to, const CUtensorMap* map, int c0, int c1, int c2, int c3, Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(address(to)),
      "l"(map), "r"(address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}

// --- wgmma. Matrices lie in panels of 64 columns: rows of 128 bytes, whose 16-byte parts are
// swapped by the row's number (the 128-byte swizzle), eight rows after eight.

// Descriptor of a matrix at `p`. leading: bytes from panel to panel where the panels' columns are
// the product's own (V); without meaning where they are summed over (Q, K).
__device__ __forceinline__ uint64_t descriptor(const void* p, int leading) {
  constexpr uint64_t kEightRows = 1024, kSwizzle128 = uint64_t{1} << 62;
  return kSwizzle128 | (kEightRows >> 4) << 32 | static_cast<uint64_t>(leading >> 4) << 16 |
         (address(p) & 0x3ffff) >> 4;
}
// Before products that read registers written since the last one.
__device__ __forceinline__ void fence_registers() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// clang-format off
#define MILLRACE_D4 "%0, %1, %2, %3"
#define MILLRACE_D8 MILLRACE_D4 ", %4, %5, %6, %7"
#define MILLRACE_D16 MILLRACE_D8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define MILLRACE_D32 MILLRACE_D16 \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define MILLRACE_D64 MILLRACE_D32 \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
  "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define MILLRACE_F4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define MILLRACE_F8(d, i) MILLRACE_F4(d, i), MILLRACE_F4(d, i + 4)
#define MILLRACE_F16(d, i) MILLRACE_F8(d, i), MILLRACE_F8(d, i + 8)
#define MILLRACE_F32(d, i) MILLRACE_F16(d, i), MILLRACE_F16(d, i + 16)

#define MILLRACE_ABT(type, shape, regs, a0, b0, one, ...) \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " one ", 0;\n" \
               "wgmma.mma_async.sync.aligned." shape ".f32." type "." type " {" regs \
               "}, " a0 ", " b0 ", add, 1, 1, 0, 0;\n}\n" \
               : __VA_ARGS__ : "l"(a), "l"(b), "r"(add))
#define MILLRACE_ABT_ALL(type) \
  if constexpr (N == 4) \
    MILLRACE_ABT(type, "m64n8k16", MILLRACE_D4, "%4", "%5", "%6", MILLRACE_F4(d, 0)); \
  else if constexpr (N == 8) \
    MILLRACE_ABT(type, "m64n16k16", MILLRACE_D8, "%8", "%9", "%10", MILLRACE_F8(d, 0)); \
  else if constexpr (N == 16) \
    MILLRACE_ABT(type, "m64n32k16", MILLRACE_D16, "%16", "%17", "%18", MILLRACE_F16(d, 0)); \
  else if constexpr (N == 32) \
    MILLRACE_ABT(type, "m64n64k16", MILLRACE_D32, "%32", "%33", "%34", MILLRACE_F32(d, 0)); \
  else \
    MILLRACE_ABT(type, "m64n128k16", MILLRACE_D64, "%64", "%65", "%66", MILLRACE_F32(d, 0), \
                 MILLRACE_F32(d, 32))
#define MILLRACE_PV(type, shape, regs, a0, a1, a2, a3, b0, one, ...) \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " one ", 0;\n" \
               "wgmma.mma_async.sync.aligned." shape ".f32." type "." type " {" regs \
               "}, {" a0 ", " a1 ", " a2 ", " a3 "}, " b0 ", add, 1, 1, 1;\n}\n" \
               : __VA_ARGS__ : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1))

// d (+)= A · Bᵀ for a 64x16 and a (2 N)x16 matrix in shared memory, N of 4, 8, 16, 32 or 64.
template <typename T, int N>
__device__ __forceinline__ void product_abt(float (&d)[N], uint64_t a, uint64_t b, int add) {
  if constexpr (std::is_same_v<T, __half>) { MILLRACE_ABT_ALL("f16"); }
  else { MILLRACE_ABT_ALL("bf16"); }
}
// d += A · B for A 64x16 in registers and B 16 x (2 N) in shared memory.
template <typename T, int N>
__device__ __forceinline__ void product_pv(float (&d)[N], const uint32_t (&a)[4], uint64_t b) {
  constexpr bool kHalf = std::is_same_v<T, __half>;
  if constexpr (kHalf && N == 64)
    MILLRACE_PV("f16", "m64n128k16", MILLRACE_D64, "%64", "%65", "%66", "%67", "%68", "%69",
                MILLRACE_F32(d, 0), MILLRACE_F32(d, 32));
  else if constexpr (N == 64)
    MILLRACE_PV("bf16", "m64n128k16", MILLRACE_D64, "%64", "%65", "%66", "%67", "%68", "%69",
                MILLRACE_F32(d, 0), MILLRACE_F32(d, 32));
  else if constexpr (kHalf)
    MILLRACE_PV("f16", "m64n64k16", MILLRACE_D32, "%32", "%33", "%34", "%35", "%36", "%37",
                MILLRACE_F32(d, 0));
  else
    MILLRACE_PV("bf16", "m64n64k16", MILLRACE_D32, "%32", "%33", "%34", "%35", "%36", "%37",
                MILLRACE_F32(d, 0));
}
// clang-format on

#endif  // MILLRACE_ON_HOPPER

}  // namespace millrace::cuda::hopper
