// exp and tanh of vectors, written once for all targets. NaN stays NaN.
//   exp(x) = 2^n e^r, n = round(x / ln 2), |r| <= ln(2)/2, e^r by its degree-7 Taylor polynomial: about 1 ulp.
//   tanh(x) = x + x^3 P(x^2) below 0.625 (P fitted by Cephes, public domain), else 1 - 2 / (exp(2|x|) + 1): 2 ulp.
#if defined(RESTKV_KERNELS_CPU_VECTOR_MATH_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RESTKV_KERNELS_CPU_VECTOR_MATH_H_
#undef RESTKV_KERNELS_CPU_VECTOR_MATH_H_
#else
#define RESTKV_KERNELS_CPU_VECTOR_MATH_H_
#endif

#include "kernels/cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace restkv::cpu::HWY_NAMESPACE {

// 0 below -87.33 (the results there would be subnormal), at most e^88 = 1.65e38 above 88.
HWY_INLINE V exp(V x) {
  const V clamped = min(set1(88.0f), x);
  const V magic = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const V shifted = mul_add(clamped, set1(1.44269504f), magic);
  const V n = shifted - magic;
  V r = neg_mul_add(n, set1(0.693359375f), clamped);  // ln 2 in two parts, the first exact times n
  r = neg_mul_add(n, set1(-2.12194440e-4f), r);
  V p = set1(1.0f / 5040);
  p = mul_add(p, r, set1(1.0f / 720));
  p = mul_add(p, r, set1(1.0f / 120));
  p = mul_add(p, r, set1(1.0f / 24));
  p = mul_add(p, r, set1(1.0f / 6));
  p = mul_add(p, r, set1(0.5f));
  p = mul_add(p, r * r, r);
  p = p + set1(1.0f);
  return select_less(x, set1(-87.33f), zero(), p * power_of_two(shifted));
}

HWY_INLINE V tanh(V x) {
  const V size = abs(x);
  const V z = x * x;
  V p = set1(-5.70498872745e-3f);
  p = mul_add(p, z, set1(2.06390887954e-2f));
  p = mul_add(p, z, set1(-5.37397155531e-2f));
  p = mul_add(p, z, set1(1.33314422036e-1f));
  p = mul_add(p, z, set1(-3.33332819422e-1f));
  const V small = mul_add(p * z, x, x);
  const V large = set1(1.0f) - set1(2.0f) / (exp(size + size) + set1(1.0f));
  return select_less(size, set1(0.625f), small, copy_sign(large, x));
}

// x / (1 + exp(-x)).
HWY_INLINE V silu(V x) { return x / (set1(1.0f) + exp(zero() - x)); }

// 0.5 x (1 + tanh(u)) = x / (1 + exp(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3).
HWY_INLINE V gelu_tanh(V x) {
  const V cube = x * x * x;
  const V u = set1(0.797884561f) * mul_add(set1(0.044715f), cube, x);
  return x / (set1(1.0f) + exp(set1(-2.0f) * u));
}

}  // namespace restkv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // RESTKV_KERNELS_CPU_VECTOR_MATH_H_
