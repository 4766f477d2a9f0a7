// device.h for nvcc: PTX and intrinsics. Each function has its twin in tests/emulator/device.h.
#pragma once

#include <type_traits>

#include "kernels/cuda/device_types.h"

namespace restkv::cuda {

using ::float2;
using ::float4;
using ::uint2;
using ::uint4;

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(bf16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
__device__ __forceinline__ float to_f32(f16 x) {
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(x.bits));
  return out;
}

__device__ __forceinline__ float bits_to_f32(uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ uint32_t f32_to_bits(float x) { return __float_as_uint(x); }

template <class T>
__device__ __forceinline__ T from_f32(float x);
template <>
__device__ __forceinline__ float from_f32<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 from_f32<bf16>(float x) {
  bf16 out;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
  return out;
}
template <>
__device__ __forceinline__ f16 from_f32<f16>(float x) {
  f16 out;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
  return out;
}

template <class T>
__device__ __forceinline__ uint32_t pack2(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack2<bf16>(float low, float high) {
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
template <>
__device__ __forceinline__ uint32_t pack2<f16>(float low, float high) {
  uint32_t out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
template <class T>
__device__ __forceinline__ float2 unpack2(uint32_t pair) {
  return {to_f32(T{static_cast<uint16_t>(pair)}), to_f32(T{static_cast<uint16_t>(pair >> 16)})};
}

template <class V>
__device__ __forceinline__ V load_vector(const void* p) {
  return *static_cast<const V*>(p);
}
__device__ __forceinline__ uint4 load_streamed(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
template <class V>
__device__ __forceinline__ void store_vector(void* p, V v) {
  *static_cast<V*>(p) = v;
}

__device__ __forceinline__ uint32_t leading_zeros(uint32_t v) {
  return static_cast<uint32_t>(__clz(static_cast<int>(v)));
}
__device__ __forceinline__ uint32_t count_bits(uint32_t v) { return static_cast<uint32_t>(__popc(v)); }
__device__ __forceinline__ float exp2_approx(float x) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}
__device__ __forceinline__ float log2_approx(float x) {
  float out;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}
__device__ __forceinline__ float divide_approx(float a, float b) {
  float out;
  asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
  return out;
}
__device__ __forceinline__ float rsqrt_exact(float x) { return __frcp_rn(__fsqrt_rn(x)); }
__device__ __forceinline__ float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }

template <class T>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ __align__(1024) unsigned char restkv_shared[];
  return reinterpret_cast<T*>(restkv_shared);
}

__device__ __forceinline__ void sync_threads() { __syncthreads(); }
__device__ __forceinline__ void barrier_sync(uint32_t id, uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t id, uint32_t threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void sync_warp(uint32_t mask = kFullWarp) { __syncwarp(mask); }

// The next kernel is let in first: its blocks come when all of this one have their places, so they take none from them, and it
// waits in turn for the whole of this one. So a kernel that is through has all before it behind it, however many wait in line.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  if constexpr (kOverlapsLaunches) {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
  }
#endif
}
__device__ __forceinline__ void prefetch_line(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

__device__ __forceinline__ uint32_t lane_idx() { return threadIdx.x & 31u; }
__device__ __forceinline__ uint32_t warp_idx() { return threadIdx.x >> 5; }

template <class T>
__device__ __forceinline__ T shuffle(T v, uint32_t lane, uint32_t mask = kFullWarp) {
  return __shfl_sync(mask, v, static_cast<int>(lane));
}
template <class T>
__device__ __forceinline__ T shuffle_xor(T v, uint32_t bits, uint32_t mask = kFullWarp) {
  return __shfl_xor_sync(mask, v, static_cast<int>(bits));
}
template <class T>
__device__ __forceinline__ T shuffle_up(T v, uint32_t n, uint32_t mask = kFullWarp) {
  return __shfl_up_sync(mask, v, n);
}
template <class T>
__device__ __forceinline__ T shuffle_down(T v, uint32_t n, uint32_t mask = kFullWarp) {
  return __shfl_down_sync(mask, v, n);
}
__device__ __forceinline__ uint32_t ballot(bool p, uint32_t mask = kFullWarp) {
  return __ballot_sync(mask, p);
}
__device__ __forceinline__ bool any(bool p, uint32_t mask = kFullWarp) { return __any_sync(mask, p) != 0; }
__device__ __forceinline__ bool all(bool p, uint32_t mask = kFullWarp) { return __all_sync(mask, p) != 0; }

__device__ __forceinline__ int32_t atomic_add(int32_t* p, int32_t v) { return atomicAdd(p, v); }
__device__ __forceinline__ uint32_t atomic_add(uint32_t* p, uint32_t v) { return atomicAdd(p, v); }
__device__ __forceinline__ uint64_t atomic_add(uint64_t* p, uint64_t v) {
  return atomicAdd(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(v));
}
__device__ __forceinline__ float atomic_add(float* p, float v) { return atomicAdd(p, v); }
__device__ __forceinline__ int32_t atomic_max(int32_t* p, int32_t v) { return atomicMax(p, v); }
__device__ __forceinline__ uint32_t atomic_max(uint32_t* p, uint32_t v) { return atomicMax(p, v); }
__device__ __forceinline__ uint64_t atomic_max(uint64_t* p, uint64_t v) {
  return atomicMax(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(v));
}
__device__ __forceinline__ int32_t atomic_min(int32_t* p, int32_t v) { return atomicMin(p, v); }
__device__ __forceinline__ uint32_t atomic_min(uint32_t* p, uint32_t v) { return atomicMin(p, v); }
__device__ __forceinline__ uint32_t atomic_or(uint32_t* p, uint32_t v) { return atomicOr(p, v); }
__device__ __forceinline__ int32_t atomic_exchange(int32_t* p, int32_t v) { return atomicExch(p, v); }
__device__ __forceinline__ uint32_t atomic_exchange(uint32_t* p, uint32_t v) { return atomicExch(p, v); }
__device__ __forceinline__ uint32_t atomic_cas(uint32_t* p, uint32_t expected, uint32_t v) {
  return atomicCAS(p, expected, v);
}
__device__ __forceinline__ uint64_t atomic_cas(uint64_t* p, uint64_t expected, uint64_t v) {
  return atomicCAS(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(expected),
                   static_cast<unsigned long long>(v));
}
__device__ __forceinline__ void thread_fence() { __threadfence(); }

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
__device__ __forceinline__ void cp_async16(void* shared, const void* global, uint32_t valid = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid)
               : "memory");
}
__device__ __forceinline__ void cp_async4(void* shared, const void* global, uint32_t valid = 4) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(kIsHalf<T>);
  if constexpr (std::is_same_v<T, bf16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

// The same fragments in f32, by shuffles: exact products for the tests' f32 kernels, far from any speed.
// a: pairs as above, 2 floats each (8); b: 2 pairs (4).
__device__ __forceinline__ void mma_m16n8k16_f32(float (&d)[4], const float (&a)[8], const float (&b)[4]) {
  const uint32_t group = lane_idx() >> 2, pair = lane_idx() & 3u;
#pragma unroll
  for (uint32_t k = 0; k < 16; ++k) {
    const uint32_t owner = (k & 7u) >> 1, upper = k >> 3, odd = k & 1u;
    const float a_low = shuffle(a[4 * upper + odd], 4 * group + owner);
    const float a_high = shuffle(a[4 * upper + 2 + odd], 4 * group + owner);
    const float b_even = shuffle(b[2 * upper + odd], 8 * pair + owner);
    const float b_odd = shuffle(b[2 * upper + odd], 8 * pair + 4 + owner);
    d[0] = fma_rn(a_low, b_even, d[0]);
    d[1] = fma_rn(a_low, b_odd, d[1]);
    d[2] = fma_rn(a_high, b_even, d[2]);
    d[3] = fma_rn(a_high, b_odd, d[3]);
  }
}

}  // namespace restkv::cuda
