// What the vector decoders of quantised weights share (weight_blocks.h, group_blocks.h): codes as bytes, 32 at a time where
// vectors are that long, their way into lanes of f32, and scales in memory.
//
// What an instruction costs here was measured on Zen 4, whose four vector pipes do two operations of 512 bits a cycle
// together: multiply-adds on two pipes, conversions, additions and shifts on the two others, look-ups and widenings on two in the
// middle, logic on all; so a decoder is as fast as it has few operations, spread over the pipes.
#if defined(RESTKV_KERNELS_CPU_CODE_VECTORS_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RESTKV_KERNELS_CPU_CODE_VECTORS_H_
#undef RESTKV_KERNELS_CPU_CODE_VECTORS_H_
#else
#define RESTKV_KERNELS_CPU_CODE_VECTORS_H_
#endif

#include <type_traits>
#include <utility>

#include "kernels/base/dequant.h"
#include "kernels/base/float16.h"
#include "kernels/cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace restkv::cpu::HWY_NAMESPACE {

// f(0), ..., f(N - 1), the numbers as types.
template <int N, class F>
HWY_INLINE void for_parts(const F& f) {
  [&]<int... kPart>(std::integer_sequence<int, kPart...>) HWY_ATTR __attribute__((always_inline)) {
    (f(std::integral_constant<int, kPart>()), ...);
  }
  (std::make_integer_sequence<int, N>());
}

#if RESTKV_VECTORS

using DBytes = hn::Rebind<uint8_t, DI>;  // kLanes bytes
using DSignedBytes = hn::Rebind<int8_t, DI>;
using DCodes = hn::CappedTag<uint8_t, 32>;
using DSignedCodes = hn::RebindToSigned<DCodes>;
using Codes = hn::Vec<DCodes>;
inline constexpr int kCodes = HWY_MAX_BYTES >= 32 ? 32 : 16;  // of one vector

HWY_INLINE float half_at(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, 2);
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
#else
  return f16_to_f32(bits);
#endif
}

HWY_INLINE Codes codes_at(const uint8_t* p) { return hn::LoadU(DCodes(), p); }
HWY_INLINE Codes byte_set(int value) { return hn::Set(DCodes(), static_cast<uint8_t>(value)); }

// byte >> kShift, to the left where kShift < 0, with bits of the neighbour, as the shift is one of 16 bits.
template <int kShift>
HWY_INLINE Codes shifted(Codes bytes) {
  const hn::Repartition<uint16_t, DCodes> d16;
  if constexpr (kShift > 0) bytes = hn::BitCast(DCodes(), hn::ShiftRight<kShift>(hn::BitCast(d16, bytes)));
  if constexpr (kShift < 0) bytes = hn::BitCast(DCodes(), hn::ShiftLeft<-kShift>(hn::BitCast(d16, bytes)));
  return bytes;
}

// The same under a mask, which keeps the neighbour's bits out.
template <int kShift>
HWY_INLINE Codes field(Codes bytes, int mask) {
  return hn::And(shifted<kShift>(bytes), byte_set(mask));
}

// sink(at + i, value(codes[i..] as f32, i / 16)) for kCodes signed codes.
template <class Value, class Sink>
HWY_INLINE void emit(Codes codes, int at, const Value& value, const Sink& sink) {
#if HWY_MAX_BYTES >= 32
  const auto bytes = hn::BitCast(DSignedCodes(), codes);
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const hn::Half<DSignedCodes> d16;
    const auto part = half == 0 ? hn::LowerHalf(d16, bytes) : hn::UpperHalf(d16, bytes);
#if HWY_MAX_BYTES == 64
    sink(at + half * 16, value(hn::ConvertTo(DF(), hn::PromoteTo(DI(), part)), half));
#else
    const hn::Half<decltype(d16)> d8;
    const auto low = hn::PromoteTo(DI(), hn::LowerHalf(d8, part));
    const auto high = hn::PromoteTo(DI(), hn::UpperHalf(d8, part));
    sink(at + half * 16, value(hn::ConvertTo(DF(), low), half));
    sink(at + half * 16 + 8, value(hn::ConvertTo(DF(), high), half));
#endif
  }
#else
  alignas(16) int8_t lanes[16];
  hn::Store(hn::BitCast(DSignedCodes(), codes), DSignedCodes(), lanes);
  for (int i = 0; i < 16; i += kLanes) {
    sink(at + i, value(hn::ConvertTo(DF(), hn::PromoteTo(DI(), hn::LoadU(DSignedBytes(), lanes + i))), 0));
  }
#endif
}

// The float at p in all lanes. On AVX-512 as an integer: Zen 4 loads and repeats those for nothing, but sends floats through
// the look-up unit.
HWY_INLINE V all_lanes(const float* p) {
#if HWY_TARGET == HWY_AVX3
  int32_t bits;
  std::memcpy(&bits, p, 4);
  return V{_mm512_castsi512_ps(_mm512_set1_epi32(bits))};
#else
  return set1(*p);
#endif
}

// What emit() makes of a code.
struct Scaled {
  const float* scale;
  HWY_INLINE V operator()(V code, int) const { return hn::Mul(code, all_lanes(scale)); }
};
struct ScaledByHalves {
  const float* scales;  // one each of 16 codes
  HWY_INLINE V operator()(V code, int half) const { return hn::Mul(code, all_lanes(scales + half)); }
};
struct ScaledMinus {
  const float *scale, *min;
  HWY_INLINE V operator()(V code, int) const { return hn::MulSub(code, all_lanes(scale), all_lanes(min)); }
};
struct ScaledPlus {
  const float *scale, *offset;
  HWY_INLINE V operator()(V code, int) const { return hn::MulAdd(code, all_lanes(scale), all_lanes(offset)); }
};

// Eight scales of a block at a time, half of a vector of AVX-512: their codes are taken apart in general registers, whose units
// the values leave idle.
using DF8 = hn::CappedTag<float, 8>;
using DI8 = hn::RebindToSigned<DF8>;
using F8 = hn::Vec<DF8>;

// The float16 number `at` of the four at p, in all lanes.
template <int at>
HWY_INLINE F8 half_lanes(const uint8_t* p) {
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2
  const __m128 four = _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  return F8{_mm256_broadcastss_ps(at == 0 ? four : _mm_permute_ps(four, at))};
#else
  return hn::Set(DF8(), half_at(p + 2 * at));
#endif
}

// out[i] = codes[i] * factor(i): floats from i on.
template <class Factor>
HWY_INLINE void eight_scales(const int8_t* codes /* [8] */, const Factor& factor, float* out /* [8] */) {
  const hn::Rebind<int8_t, DI8> d;
  for (int i = 0; i < 8; i += static_cast<int>(hn::Lanes(DF8()))) {
    const auto values = hn::ConvertTo(DF8(), hn::PromoteTo(DI8(), hn::LoadU(d, codes + i)));
    hn::StoreU(hn::Mul(values, factor(i)), DF8(), out + i);
  }
}
template <class Factor>
HWY_INLINE void eight_scales(uint64_t codes, const Factor& factor, float* out /* [8] */) {
  alignas(8) int8_t bytes[8];
  std::memcpy(bytes, &codes, 8);
  eight_scales(bytes, factor, out);
}

// The same byte in all eight.
constexpr uint64_t eight_bytes(uint64_t byte) { return byte * 0x0101010101010101; }

// Eight numbers of six bits, less 32 each, as signed bytes.
constexpr uint64_t minus_32(uint64_t codes) {
  return ((codes | eight_bytes(0x80)) - eight_bytes(32)) ^ eight_bytes(0x80);
}

// with_codes(codes, at) for the low nibbles of 16 bytes, which are the values from 0 on, and the high ones, from 16 on.
template <class F>
HWY_INLINE void for_nibble_codes(const uint8_t* p, const F& with_codes) {
#if HWY_MAX_BYTES >= 32
  const hn::Repartition<uint64_t, DCodes> d64;
  alignas(32) static constexpr uint64_t kShifts[4] = {0, 0, 4, 4};
  const auto both = hn::BitCast(d64, hn::LoadDup128(DCodes(), p));
  with_codes(hn::And(hn::BitCast(DCodes(), hn::Shr(both, hn::Load(d64, kShifts))), byte_set(15)), 0);
#else
  with_codes(field<0>(codes_at(p), 15), 0);
  with_codes(field<4>(codes_at(p), 15), 16);
#endif
}

// The 32 values of IQ4 codes in 16 bytes, from column `at` on.
template <class Sink>
HWY_INLINE void iq4_group(const uint8_t* p, const float* scale, int at, const Sink& sink) {
#if HWY_TARGET == HWY_AVX3
  // one product for the 16 values of all codes, then look-ups, which ignore the bits above a code's four
  const V values = hn::ConvertTo(DF(), hn::PromoteTo(DI(), hn::LoadU(DSignedBytes(), kIq4Values)));
  const V table = hn::Mul(values, all_lanes(scale));
  const auto pairs = hn::PromoteTo(DI(), hn::LoadU(DBytes(), p));
  sink(at, V{_mm512_permutexvar_ps(pairs.raw, table.raw)});
  sink(at + 16, V{_mm512_permutexvar_ps(hn::ShiftRight<4>(pairs).raw, table.raw)});
#else
  const Codes table = hn::LoadDup128(DCodes(), reinterpret_cast<const uint8_t*>(kIq4Values));
  for_nibble_codes(
      p, [&](Codes codes, int i) HWY_ATTR __attribute__((always_inline)) {
        emit(hn::TableLookupBytes(table, codes), at + i, Scaled{scale}, sink);
      });
#endif
}

#endif

}  // namespace restkv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // RESTKV_KERNELS_CPU_CODE_VECTORS_H_
