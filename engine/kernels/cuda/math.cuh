// What the kernels share: conversions of act to and from fp32, packs of up to 16 bytes, reductions
// over warps and blocks, and the choice of a kernel by dtype and alignment.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "engine/base/check.h"
#include "engine/core/tensor.h"

namespace millrace::cuda {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

// To nearest even.
template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// N elements that one load or store moves: N * sizeof(T) is 2, 4, 8 or 16 bytes and the address a
// multiple of it.
template <typename T, int N>
struct alignas(N * sizeof(T)) Pack {
  T data[N];
};
// Elements of T in 16 bytes.
template <typename T>
inline constexpr int kPackSize = 16 / static_cast<int>(sizeof(T));

template <typename T, int N>
__device__ __forceinline__ Pack<T, N> load_pack(const T* from) {
  if constexpr (N * sizeof(T) == 16) {
    return __builtin_bit_cast(Pack<T, N>, *reinterpret_cast<const uint4*>(from));
  } else {
    return *reinterpret_cast<const Pack<T, N>*>(from);
  }
}
template <typename T, int N>
__device__ __forceinline__ void store_pack(T* to, const Pack<T, N>& pack) {
  if constexpr (N * sizeof(T) == 16) {
    *reinterpret_cast<uint4*>(to) = __builtin_bit_cast(uint4, pack);
  } else {
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
  }
}
// The same as fp32. N floats of N > 4 move as several 16-byte accesses.
template <typename T, int N>
__device__ __forceinline__ void load_floats(const T* from, float (&to)[N]) {
  constexpr int kPart = N < kPackSize<T> ? N : kPackSize<T>;
  for (int begin = 0; begin < N; begin += kPart) {
    const auto pack = load_pack<T, kPart>(from + begin);
    for (int i = 0; i < kPart; ++i) to[begin + i] = to_float(pack.data[i]);
  }
}
template <typename T, int N>
__device__ __forceinline__ void store_floats(T* to, const float (&from)[N]) {
  constexpr int kPart = N < kPackSize<T> ? N : kPackSize<T>;
  for (int begin = 0; begin < N; begin += kPart) {
    Pack<T, kPart> pack;
    for (int i = 0; i < kPart; ++i) pack.data[i] = from_float<T>(from[begin + i]);
    store_pack(to + begin, pack);
  }
}

// act(gate) * up: both activations are gate * sigmoid(u), of gelu with twice the tanh's argument.
__device__ __forceinline__ float gated(float gate, float up, bool gelu) {
  const float u = gelu ? 1.5957691216f * fmaf(gate * gate * gate, 0.044715f, gate) : gate;
  return gate / (1.0f + expf(-u)) * up;
}

struct Sum {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};

// Of the 32 threads of a warp, given to each. op: commutative, as bits too.
template <typename T, typename Op>
__device__ __forceinline__ T warp_reduce(T value, Op op) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value = op(value, __shfl_xor_sync(0xffffffffu, value, offset));
  }
  return value;
}
// Of all threads of a one-dimensional block of whole warps, given to each; every thread calls.
template <typename T, typename Op>
__device__ __forceinline__ T block_reduce(T value, Op op) {
  __shared__ T partial[32];
  value = warp_reduce(value, op);
  __syncthreads();  // a former call's partial values have been read
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  value = partial[0];
  for (unsigned i = 1; i < blockDim.x / 32; ++i) value = op(value, partial[i]);
  return value;
}

// The sequence that token row `token` belongs to, of num_sequences > 0: the last that begins at or
// before it. The first num_single have one token each.
__device__ __forceinline__ int32_t sequence_of(
    int32_t token, const int32_t* cu_tokens, int32_t num_single, int32_t num_sequences) {
  if (token < num_single) return token;
  int32_t low = num_single;
  for (int32_t high = num_sequences - 1; low < high;) {
    const int32_t middle = (low + high + 1) / 2;
    if (cu_tokens[middle] <= token) low = middle;
    else high = middle - 1;
  }
  return low;
}

// body.operator()<T>() with the C++ type of an activation dtype.
template <typename Body>
void dispatch_act(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kF32: return body.template operator()<float>();
    case DType::kF16: return body.template operator()<__half>();
    case DType::kBF16: return body.template operator()<__nv_bfloat16>();
    default: CHECK(false, "{} is no activation dtype", dtype_info(dtype).name);
  }
}

// True when all rows of all views begin at multiples of 16 bytes and hold whole 16-byte packs.
template <typename... Views>
bool in_packs(const Views&... views) {
  const auto one = [](const TensorView& t) {
    return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.stride % 16 == 0 &&
           dtype_bytes(t.dtype, t.cols()) % 16 == 0;
  };
  return (one(views) && ...);
}
// body.operator()<N>() with N = 16 bytes of T, or 1 where that is not aligned.
template <typename T, typename Body>
void dispatch_packs(bool aligned, const Body& body) {
  if (aligned) return body.template operator()<kPackSize<T>>();
  body.template operator()<1>();
}

// A matrix whose rows may be strided, in elements.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;
  explicit Rows(const TensorView& t)
      : data(t.as<T>()), stride(t.stride / static_cast<int64_t>(sizeof(T))) {}
  __device__ T* operator[](int64_t i) const { return data + i * stride; }
};

inline unsigned ceil_div(int64_t a, int64_t b) { return static_cast<unsigned>((a + b - 1) / b); }

// f32 [n].
inline bool is_vector(const TensorView& t, int64_t n) {
  return t.data != nullptr && t.dtype == DType::kF32 && t.count() == n;
}
// True where each is empty or begins at a multiple of 16 bytes.
template <typename... Views>
bool vectors_in_packs(const Views&... views) {
  return ((reinterpret_cast<uintptr_t>(views.data) % 16 == 0) && ...);
}

}  // namespace millrace::cuda
