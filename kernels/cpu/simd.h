// The vectors kernels are written in: V holds kLanes floats (16, 8 or 4). On Highway's targets these are thin names for
// its ops; on the baseline (and with RESTKV_HIGHWAY off) V is the compiler's own 16-byte vector.
//
// The sum of a vector's lanes always has the same tree (fold halves down to 4 lanes l0..l3, then (l0+l2) + (l1+l3)),
// whether one vector is summed or four at once: outputs are bitwise the same from every tile shape.
#if defined(RESTKV_KERNELS_CPU_SIMD_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RESTKV_KERNELS_CPU_SIMD_H_
#undef RESTKV_KERNELS_CPU_SIMD_H_
#else
#define RESTKV_KERNELS_CPU_SIMD_H_
#endif

#include <cstdint>
#include <cstring>

#undef RESTKV_VECTORS
#if RESTKV_HIGHWAY && HWY_TARGET != HWY_SCALAR && HWY_TARGET != HWY_EMU128
#define RESTKV_VECTORS 1  // wide vectors and vector dequantisers
#else
#define RESTKV_VECTORS 0
#endif

HWY_BEFORE_NAMESPACE();
namespace restkv::cpu::HWY_NAMESPACE {

#if RESTKV_VECTORS
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using DI = hn::ScalableTag<int32_t>;
using V = hn::Vec<DF>;
inline constexpr int kLanes = HWY_MAX_BYTES / 4;

HWY_INLINE V load(const float* p) { return hn::LoadU(DF(), p); }
HWY_INLINE void store(V v, float* p) { hn::StoreU(v, DF(), p); }
HWY_INLINE V set1(float x) { return hn::Set(DF(), x); }
HWY_INLINE V zero() { return hn::Zero(DF()); }
HWY_INLINE V mul_add(V a, V b, V c) { return hn::MulAdd(a, b, c); }         // a*b + c
HWY_INLINE V neg_mul_add(V a, V b, V c) { return hn::NegMulAdd(a, b, c); }  // c - a*b
// Where an operand is NaN these give b.
HWY_INLINE V max(V a, V b) { return hn::Max(a, b); }
HWY_INLINE V min(V a, V b) { return hn::Min(a, b); }
HWY_INLINE V abs(V a) { return hn::Abs(a); }
HWY_INLINE V copy_sign(V magnitude, V sign) { return hn::CopySign(magnitude, sign); }
HWY_INLINE V select_less(V a, V b, V yes, V no) { return hn::IfThenElse(hn::Lt(a, b), yes, no); }
// 2^n, n the integer in the low bits of v = n + 1.5 * 2^23; -127 < n < 128.
HWY_INLINE V power_of_two(V v) {
  return hn::BitCast(DF(), hn::Add(hn::ShiftLeft<23>(hn::BitCast(DI(), v)), hn::Set(DI(), 0x3F800000)));
}

// Lane sums of a, b, c, d -> out[0..4).
HWY_INLINE void sum4(V a, V b, V c, V d, float* out) {
#if HWY_TARGET == HWY_AVX3
  // folds two vectors, then four, in one register: [a b c d], 4 lanes each
  const __m512 ab =
      _mm512_add_ps(_mm512_shuffle_f32x4(a.raw, b.raw, 0x44), _mm512_shuffle_f32x4(a.raw, b.raw, 0xEE));
  const __m512 cd =
      _mm512_add_ps(_mm512_shuffle_f32x4(c.raw, d.raw, 0x44), _mm512_shuffle_f32x4(c.raw, d.raw, 0xEE));
  __m512 v = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
  v = _mm512_add_ps(v, _mm512_permute_ps(v, 0x4E));
  v = _mm512_add_ps(v, _mm512_permute_ps(v, 0xB1));
  const __m512i first_lanes = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0);
  _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(first_lanes, v)));
#elif HWY_TARGET == HWY_AVX2
  const __m256 ab =
      _mm256_add_ps(_mm256_permute2f128_ps(a.raw, b.raw, 0x20), _mm256_permute2f128_ps(a.raw, b.raw, 0x31));
  const __m256 cd =
      _mm256_add_ps(_mm256_permute2f128_ps(c.raw, d.raw, 0x20), _mm256_permute2f128_ps(c.raw, d.raw, 0x31));
  // lanes (a, c, a, c | b, d, b, d), then (a, c, .. | b, d, ..)
  __m256 v = _mm256_add_ps(_mm256_unpacklo_ps(ab, cd), _mm256_unpackhi_ps(ab, cd));
  v = _mm256_add_ps(v, _mm256_permute_ps(v, 0x4E));
  _mm_storeu_ps(out, _mm_unpacklo_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)));
#else
  static_assert(kLanes == 4);
  const V ab = hn::Add(hn::InterleaveLower(DF(), a, b), hn::InterleaveUpper(DF(), a, b));
  const V cd = hn::Add(hn::InterleaveLower(DF(), c, d), hn::InterleaveUpper(DF(), c, d));
  hn::StoreU(hn::Add(hn::ConcatLowerLower(DF(), cd, ab), hn::ConcatUpperUpper(DF(), cd, ab)), DF(), out);
#endif
}

#else

using V = float __attribute__((vector_size(16)));
using VI = int32_t __attribute__((vector_size(16)));
inline constexpr int kLanes = 4;

HWY_INLINE V load(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
HWY_INLINE void store(V v, float* p) { std::memcpy(p, &v, sizeof(v)); }
HWY_INLINE V set1(float x) { return V{x, x, x, x}; }
HWY_INLINE V zero() { return V{}; }
HWY_INLINE V mul_add(V a, V b, V c) { return a * b + c; }
HWY_INLINE V neg_mul_add(V a, V b, V c) { return c - a * b; }
HWY_INLINE V select(VI mask, V yes, V no) {
  return reinterpret_cast<V>((mask & reinterpret_cast<VI>(yes)) | (~mask & reinterpret_cast<VI>(no)));
}
HWY_INLINE V max(V a, V b) { return select(a > b, a, b); }
HWY_INLINE V min(V a, V b) { return select(a < b, a, b); }
HWY_INLINE V abs(V a) { return reinterpret_cast<V>(reinterpret_cast<VI>(a) & 0x7FFFFFFF); }
HWY_INLINE V copy_sign(V magnitude, V sign) {
  const VI sign_bit = reinterpret_cast<VI>(set1(-0.0f));
  return select(sign_bit, sign, magnitude);
}
HWY_INLINE V select_less(V a, V b, V yes, V no) { return select(a < b, yes, no); }
HWY_INLINE V power_of_two(V v) {
  using U = uint32_t __attribute__((vector_size(16)));
  return reinterpret_cast<V>((reinterpret_cast<U>(v) << 23) + 0x3F800000u);
}
HWY_INLINE void sum4(V a, V b, V c, V d, float* out) {
  out[0] = (a[0] + a[2]) + (a[1] + a[3]);
  out[1] = (b[0] + b[2]) + (b[1] + b[3]);
  out[2] = (c[0] + c[2]) + (c[1] + c[3]);
  out[3] = (d[0] + d[2]) + (d[1] + d[3]);
}

#endif

// The first n < kLanes floats at p, zeros behind them.
HWY_INLINE V load_first(const float* p, int64_t n) {
  alignas(64) float lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<size_t>(n) * 4);
  return load(lanes);
}
HWY_INLINE void store_first(V v, float* p, int64_t n) {
  alignas(64) float lanes[kLanes];
  store(v, lanes);
  std::memcpy(p, lanes, static_cast<size_t>(n) * 4);
}
HWY_INLINE float sum(V v) {
  float out[4];
  sum4(v, v, v, v, out);
  return out[0];
}
// The largest lane; NaN lanes may be ignored.
HWY_INLINE float max_lane(V v) {
  alignas(64) float lanes[kLanes];
  store(v, lanes);
  float best = lanes[0];
  for (int i = 1; i < kLanes; ++i) best = lanes[i] > best ? lanes[i] : best;
  return best;
}

}  // namespace restkv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // RESTKV_KERNELS_CPU_SIMD_H_
