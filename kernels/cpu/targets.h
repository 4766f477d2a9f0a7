// One source, several processor levels. A kernel file sets HWY_TARGET_INCLUDE to itself and includes this header;
// Highway then compiles it once for each level (AVX-512, AVX2, and the compiler's own baseline), each in its own
// namespace. With RESTKV_HIGHWAY off, only the baseline is compiled and the names below stand in for Highway's.
// No include guard: Highway's re-inclusion has to pass through here.
#if RESTKV_HIGHWAY
#ifndef HWY_DISABLED_TARGETS
// Below AVX2 the plain vectors of simd.h serve; the scalable Arm vectors have no fixed lane order.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#endif
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on
#else
#ifndef HWY_ONCE
#define HWY_ONCE 1
#define HWY_NAMESPACE N_PLAIN
#define HWY_BEFORE_NAMESPACE() static_assert(true)
#define HWY_AFTER_NAMESPACE() static_assert(true)
#define HWY_INLINE inline __attribute__((always_inline))
#define HWY_ATTR
#define HWY_EXPORT(function) static_assert(true)
#define HWY_DYNAMIC_DISPATCH(function) N_PLAIN::function
#endif
#endif
