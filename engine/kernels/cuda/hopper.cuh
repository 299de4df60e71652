// Hopper's asynchronous instructions (PTX ISA 9.7, sm_90a): barriers in shared memory, tensor
// copies (TMA), and products of a warpgroup (wgmma) with fp32 sums.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

// Only in code for sm_90a: its instructions exist on no other GPU, older or newer.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define MILLRACE_ON_HOPPER 1
#endif

namespace millrace::cuda::hopper {

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
// Among the threads of one warpgroup; `id` from 1 on.
__device__ __forceinline__ void sync_warpgroup(int id) {
  asm volatile("bar.sync %0, 128;" ::"r"(id) : "memory");
}
template <int kCount>
__device__ __forceinline__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
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
#define MILLRACE_D32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define MILLRACE_D64 MILLRACE_D32 \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
  "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define MILLRACE_F8(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), \
  "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define MILLRACE_F32(d, i) MILLRACE_F8(d, i), MILLRACE_F8(d, i + 8), MILLRACE_F8(d, i + 16), \
  MILLRACE_F8(d, i + 24)

#define MILLRACE_QK(type) \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n" \
               "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" MILLRACE_D64 \
               "}, %64, %65, add, 1, 1, 0, 0;\n}\n" \
               : MILLRACE_F32(d, 0), MILLRACE_F32(d, 32) : "l"(a), "l"(b), "r"(add))
#define MILLRACE_PV(type, shape, regs, a0, a1, a2, a3, b0, one, ...) \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " one ", 0;\n" \
               "wgmma.mma_async.sync.aligned." shape ".f32." type "." type " {" regs \
               "}, {" a0 ", " a1 ", " a2 ", " a3 "}, " b0 ", add, 1, 1, 1;\n}\n" \
               : __VA_ARGS__ : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1))

// d (+)= A · Bᵀ for a 64x16 and a 128x16 matrix in shared memory.
template <typename T>
__device__ __forceinline__ void product_qk(float (&d)[64], uint64_t a, uint64_t b, int add) {
  if constexpr (std::is_same_v<T, __half>) MILLRACE_QK("f16");
  else MILLRACE_QK("bf16");
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
