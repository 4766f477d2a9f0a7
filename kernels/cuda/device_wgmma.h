// The products of a warpgroup for nvcc: PTX of sm_90a (device.h lists them). Each function has its twin in
// tests/emulator/device_wgmma.h. Elsewhere they do not exist: a kernel asks kHasWgmma before it calls one.
#pragma once

#include "kernels/cuda/device_types.h"

namespace restkv::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
inline constexpr bool kHasWgmma = true;
#else
inline constexpr bool kHasWgmma = false;
#endif

template <class T>
inline constexpr char kWgmmaTypes[] = "no such type";
template <>
inline constexpr char kWgmmaTypes<bf16>[] = ".bf16.bf16";
template <>
inline constexpr char kWgmmaTypes<f16>[] = ".f16.f16";

// Its instructions stay in registers, before or behind what stands around this.
template <int kColumns>
__device__ __forceinline__ void hold_registers(float (&d)[kColumns][4]) {
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
    asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
  }
}
template <int kSteps>
__device__ __forceinline__ void hold_registers(uint32_t (&a)[kSteps][4]) {
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    asm volatile("" : "+r"(a[k][0]), "+r"(a[k][1]), "+r"(a[k][2]), "+r"(a[k][3])::"memory");
  }
}

__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
template <class... Registers>
__device__ __forceinline__ void wgmma_fence(Registers&... registers) {
  (hold_registers(registers), ...);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N, class... Registers>
__device__ __forceinline__ void wgmma_wait(Registers&... registers) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
  (hold_registers(registers), ...);
}

__device__ __forceinline__ uint64_t wgmma_tile(const void* tile, uint32_t leading_bytes,
                                               uint32_t stride_bytes) {
  const uint64_t start = (static_cast<uint32_t>(__cvta_generic_to_shared(tile)) & 0x3FFFFu) >> 4;
  return start | uint64_t{leading_bytes >> 4} << 16 | uint64_t{stride_bytes >> 4} << 32 | uint64_t{1} << 62;
}

__device__ __forceinline__ uint64_t wgmma_advance(uint64_t tile, uint32_t bytes) {
  return tile + (bytes >> 4);
}

// The sums of a product as operands of its instruction, columns of 8 from `n` on, and their places in its text.
#define RESTKV_SUMS_1(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define RESTKV_SUMS_4(n) \
  RESTKV_SUMS_1(n), RESTKV_SUMS_1((n) + 1), RESTKV_SUMS_1((n) + 2), RESTKV_SUMS_1((n) + 3)
#define RESTKV_SUMS_8(n) RESTKV_SUMS_4(n), RESTKV_SUMS_4((n) + 4)
#define RESTKV_PLACES_32                                                                                 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define RESTKV_PLACES_48 \
  RESTKV_PLACES_32       \
  ", "                   \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define RESTKV_PLACES_64 \
  RESTKV_PLACES_48       \
  ", "                   \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define RESTKV_PLACES_128                                                                                \
  RESTKV_PLACES_64                                                                                       \
  ", "                                                                                                   \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, " \
  "%84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"                                           \
  ", "                                                                                                   \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, "   \
  "%113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

template <class T, int kColumns>
__device__ __forceinline__ void wgmma_shared(float (&d)[kColumns][4], uint64_t a, uint64_t b,
                                             bool accumulates) {
  static_assert(kIsHalf<T>);
  [[maybe_unused]] const auto accumulate = static_cast<uint32_t>(accumulates);
  if constexpr (kColumns == 8) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %35, 0; "
        "wgmma.mma_async.sync.aligned.m64n64k16.f32%32 {" RESTKV_PLACES_32 "}, %33, %34, p, 1, 1, 0, 0; }"
        : RESTKV_SUMS_8(0)
        : "C"(kWgmmaTypes<T>), "l"(a), "l"(b), "r"(accumulate));
  } else if constexpr (kColumns == 16) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %67, 0; "
        "wgmma.mma_async.sync.aligned.m64n128k16.f32%64 {" RESTKV_PLACES_64 "}, %65, %66, p, 1, 1, 0, 0; }"
        : RESTKV_SUMS_8(0), RESTKV_SUMS_8(8)
        : "C"(kWgmmaTypes<T>), "l"(a), "l"(b), "r"(accumulate));
  } else {
    static_assert(kColumns == 0, "no such product");
  }
}

template <class T, int kColumns>
__device__ __forceinline__ void wgmma_registers(float (&d)[kColumns][4], const uint32_t (&a)[4], uint64_t b) {
  static_assert(kIsHalf<T>);
  if constexpr (kColumns == 8) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32%32 {" RESTKV_PLACES_32
                 "}, {%33, %34, %35, %36}, %37, 1, 1, 1, 1;"
                 : RESTKV_SUMS_8(0)
                 : "C"(kWgmmaTypes<T>), "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  } else if constexpr (kColumns == 12) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n96k16.f32%48 {" RESTKV_PLACES_48
                 "}, {%49, %50, %51, %52}, %53, 1, 1, 1, 1;"
                 : RESTKV_SUMS_8(0), RESTKV_SUMS_4(8)
                 : "C"(kWgmmaTypes<T>), "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  } else if constexpr (kColumns == 16) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32%64 {" RESTKV_PLACES_64
                 "}, {%65, %66, %67, %68}, %69, 1, 1, 1, 1;"
                 : RESTKV_SUMS_8(0), RESTKV_SUMS_8(8)
                 : "C"(kWgmmaTypes<T>), "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  } else if constexpr (kColumns == 32) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32%128 {" RESTKV_PLACES_128
                 "}, {%129, %130, %131, %132}, %133, 1, 1, 1, 1;"
                 : RESTKV_SUMS_8(0), RESTKV_SUMS_8(8), RESTKV_SUMS_8(16), RESTKV_SUMS_8(24)
                 : "C"(kWgmmaTypes<T>), "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  } else {
    static_assert(kColumns == 0, "no such product");
  }
}

#undef RESTKV_SUMS_1
#undef RESTKV_SUMS_4
#undef RESTKV_SUMS_8
#undef RESTKV_PLACES_32
#undef RESTKV_PLACES_48
#undef RESTKV_PLACES_64
#undef RESTKV_PLACES_128

// setmaxnreg: from the block's registers, of which every thread has those of the launch at first.
template <uint32_t kCount>
__device__ __forceinline__ void give_registers() {
  static_assert(kCount % 8 == 0 && kCount >= 24 && kCount <= 256);
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <uint32_t kCount>
__device__ __forceinline__ void take_registers() {
  static_assert(kCount % 8 == 0 && kCount >= 24 && kCount <= 256);
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// No answer is better than the one of a kernel that was started where it cannot run.
__device__ __forceinline__ void stop_kernel() { asm volatile("trap;"); }

}  // namespace restkv::cuda
