// Vector decoders of the GGUF types whose blocks hold 256 values in groups with scales of their own (layouts:
// kernels/base/dequant.cpp). value = scale * code - min; the product is exact in f32 (at most 17 bits of scale times 5 of
// code where there is a minimum), so the floats are those of the scalar code, bit for bit.
//
// A decoder has: kBlock values in kBytes bytes; convert_scales(block, scales), which makes all kScales f32 of a block in a few
// vector operations; and decode(block, scales, step, sink), which hands the kStep values from step * kStep on to
// sink(column in the step, vector), columns rising. The scales go through memory because a broadcast from there costs a
// load, where one from a register takes the shuffle unit, which the codes need. Codes are handled as bytes, 32 at a time
// where vectors are that long, and widened last.
#if defined(RESTKV_KERNELS_CPU_GROUP_BLOCKS_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RESTKV_KERNELS_CPU_GROUP_BLOCKS_H_
#undef RESTKV_KERNELS_CPU_GROUP_BLOCKS_H_
#else
#define RESTKV_KERNELS_CPU_GROUP_BLOCKS_H_
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
HWY_INLINE void for_pieces(const F& f) {
  [&]<int... kPiece>(std::integer_sequence<int, kPiece...>) HWY_ATTR __attribute__((always_inline)) {
    (f(std::integral_constant<int, kPiece>()), ...);
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

// (byte >> kShift) & mask, to the left where kShift < 0; the mask keeps out the neighbour's bits that 16-bit shifts bring in.
template <int kShift>
HWY_INLINE Codes field(Codes bytes, int mask) {
  const hn::Repartition<uint16_t, DCodes> d16;
  if constexpr (kShift > 0) bytes = hn::BitCast(DCodes(), hn::ShiftRight<kShift>(hn::BitCast(d16, bytes)));
  if constexpr (kShift < 0) bytes = hn::BitCast(DCodes(), hn::ShiftLeft<-kShift>(hn::BitCast(d16, bytes)));
  return hn::And(bytes, byte_set(mask));
}

// byte >> shift, with bits of the neighbour above.
HWY_INLINE Codes shift_right(Codes bytes, int shift) {
  const hn::Repartition<uint16_t, DCodes> d16;
  return hn::BitCast(DCodes(), hn::ShiftRightSame(hn::BitCast(d16, bytes), shift));
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

// p, of which the compiler no longer knows that it is p. On AVX-512 a broadcast into a register takes the shuffle unit (Zen 4),
// one inside the instruction that uses it is free: so the second use of a scale reads memory anew.
HWY_INLINE const float* another(const float* p) {
#if HWY_TARGET == HWY_AVX3
  asm("" : "+r"(p));
#endif
  return p;
}

// scale * code - min, where both serve one vector: the product is exact, so two instructions, with an operand from memory
// each, round as one does.
HWY_INLINE V scaled_minus(V code, const float* scale, const float* min) {
#if HWY_TARGET == HWY_AVX3
  return hn::Sub(hn::Mul(code, set1(*scale)), set1(*min));
#else
  return hn::MulSub(code, set1(*scale), set1(*min));
#endif
}

// What emit() makes of a code.
struct Scaled {
  const float* scale;
  HWY_INLINE V operator()(V code, int half) const {
    return hn::Mul(code, set1(*(half == 0 ? scale : another(scale))));
  }
};
struct ScaledByHalves {
  const float* scales;  // one each of 16 codes
  HWY_INLINE V operator()(V code, int half) const { return hn::Mul(code, set1(scales[half])); }
};
struct ScaledMinus {
  const float* scale;
  V min;
  HWY_INLINE V operator()(V code, int half) const {
    return hn::MulSub(code, set1(*(half == 0 ? scale : another(scale))), min);
  }
};
struct ScaledPlus {
  const float* scale;
  V offset;
  HWY_INLINE V operator()(V code, int half) const {
    return hn::MulAdd(code, set1(*(half == 0 ? scale : another(scale))), offset);
  }
};

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
  const V table = hn::Mul(values, set1(*scale));
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

// Sixteen 6-bit scales and minima of Q4_K and Q5_K: scales [8], then minima [8]. kInPlace: the odd scales are for codes times 16.
template <bool kInPlace>
HWY_INLINE void k4_scales(const uint8_t* b, float* scales) {
  const hn::Full128<uint8_t> d8;
  const hn::Full128<uint32_t> d32;
  // d, dmin and three words, w0 w1 w2; four scales or minima in each word of: w0, (w2, w0), w1, (w2 / 16, w1)
  alignas(16) static constexpr uint8_t kLow[16] = {4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15};
  alignas(16) static constexpr uint8_t kTop[16] = {4, 5, 6, 7, 4, 5, 6, 7, 8, 9, 10, 11, 8, 9, 10, 11};
  alignas(16) static constexpr uint32_t kShift[4] = {0, 0, 0, 4}, kTopShift[4] = {0, 2, 0, 2};
  alignas(16) static constexpr uint32_t kMask[4] = {0x3F3F3F3F, 0x0F0F0F0F, 0x3F3F3F3F, 0x0F0F0F0F};
  alignas(16) static constexpr uint32_t kTopMask[4] = {0, 0x30303030, 0, 0x30303030};
  alignas(64) static constexpr float kPlaces[16] = {1, 1.0f / 16, 1, 1.0f / 16, 1, 1.0f / 16, 1, 1.0f / 16,
                                                    1, 1,         1, 1,         1, 1,         1, 1};
  const auto words = hn::LoadU(d8, b);
  const auto low = hn::BitCast(d32, hn::TableLookupBytes(words, hn::Load(d8, kLow)));
  const auto top = hn::BitCast(d32, hn::TableLookupBytes(words, hn::Load(d8, kTop)));
  alignas(16) uint8_t unpacked[16];
  hn::Store(hn::BitCast(d8, hn::Or(hn::And(hn::Shr(low, hn::Load(d32, kShift)), hn::Load(d32, kMask)),
                                   hn::And(hn::Shr(top, hn::Load(d32, kTopShift)), hn::Load(d32, kTopMask)))),
            d8, unpacked);
#if HWY_TARGET == HWY_AVX3
  // d in the lower half of the lanes, dmin in the upper one
  const __m512i halves = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m512 both = _mm512_castps128_ps512(_mm_cvtph_ps(_mm_loadu_si32(b)));
  V factor = V{_mm512_permutexvar_ps(halves, both)};
  if constexpr (kInPlace) factor = hn::Mul(factor, load(kPlaces));
  store(hn::Mul(hn::ConvertTo(DF(), hn::PromoteTo(DI(), hn::LoadU(DBytes(), unpacked))), factor), scales);
#else
  const float d = half_at(b), dmin = half_at(b + 2);
  for (int i = 0; i < 16; i += kLanes) {
    V factor = set1(i < 8 ? d : dmin);
    if constexpr (kInPlace) factor = hn::Mul(factor, load(kPlaces + i));
    store(hn::Mul(hn::ConvertTo(DF(), hn::PromoteTo(DI(), hn::LoadU(DBytes(), unpacked + i))), factor),
          scales + i);
  }
#endif
}

struct Q2KBlock {
  static constexpr DType kDType = DType::kQ2_K;
  static constexpr int kBlock = 256, kBytes = 84, kScales = 32, kStep = 128;
  // A code stays at its bits of the byte, so that no shift is needed: scale / 4^j for the pairs of bits 2j.
  static HWY_INLINE void convert_scales(const uint8_t* b, float* scales /* scales [16], minima [16] */) {
    alignas(64) static constexpr float kPlaces[16] = {
        1, 1, 1.0f / 4, 1.0f / 4, 1.0f / 16, 1.0f / 16, 1.0f / 64, 1.0f / 64,
        1, 1, 1.0f / 4, 1.0f / 4, 1.0f / 16, 1.0f / 16, 1.0f / 64, 1.0f / 64};
    const V d = set1(half_at(b + 80)), dmin = set1(half_at(b + 82));
    for (int i = 0; i < 16; i += kLanes) {
      const auto pairs = hn::PromoteTo(DI(), hn::LoadU(DBytes(), b + i));
      const V scale = hn::Mul(hn::ConvertTo(DF(), hn::And(pairs, hn::Set(DI(), 15))), d);
      store(hn::Mul(scale, load(kPlaces + i)), scales + i);
      store(hn::Mul(hn::ConvertTo(DF(), hn::ShiftRight<4>(pairs)), dmin), scales + 16 + i);
    }
  }
  template <int kPiece, class Sink>
  static HWY_INLINE void decode(const uint8_t* b, const float* scales, int step, const Sink& sink) {
#pragma GCC unroll 8
    for (int i = 0; i < 32; i += kLanes) {
      const auto quads = hn::PromoteTo(DI(), hn::LoadU(DBytes(), b + 16 + step * 32 + i));
      const V code = hn::ConvertTo(DF(), hn::And(quads, hn::Set(DI(), 3 << (2 * kPiece))));
      const float* group = scales + step * 8 + kPiece * 2 + i / 16;
      sink(kPiece * 32 + i, scaled_minus(code, group, group + 16));
    }
  }
};

struct Q3KBlock {
  static constexpr DType kDType = DType::kQ3_K;
  static constexpr int kBlock = 256, kBytes = 110, kScales = 16, kStep = 128;
  static HWY_INLINE void convert_scales(const uint8_t* b, float* scales) {
    const hn::Full128<uint8_t> d8;
    const hn::Full128<uint32_t> d32;
    const hn::Full128<uint64_t> d64;
    // the nibbles' bytes twice, the pairs' word four times
    alignas(16) static constexpr uint8_t kLow[16] = {2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5, 6, 7, 8, 9};
    alignas(16) static constexpr uint8_t kPairs[16] = {10, 11, 12, 13, 10, 11, 12, 13,
                                                       10, 11, 12, 13, 10, 11, 12, 13};
    alignas(16) static constexpr uint64_t kShift[2] = {0, 4};
    alignas(16) static constexpr uint32_t kPairShift[4] = {0, 2, 4, 6};
    const auto packed = hn::LoadU(d8, b + 94);  // the 12 bytes lie at 96
    const auto low =
        hn::Shr(hn::BitCast(d64, hn::TableLookupBytes(packed, hn::Load(d8, kLow))), hn::Load(d64, kShift));
    const auto pairs = hn::Shr(hn::BitCast(d32, hn::TableLookupBytes(packed, hn::Load(d8, kPairs))),
                               hn::Load(d32, kPairShift));
    const auto high = hn::ShiftLeft<4>(hn::And(pairs, hn::Set(d32, 0x03030303)));
    alignas(16) uint8_t unpacked[16];
    hn::Store(hn::Or(hn::And(hn::BitCast(d8, low), hn::Set(d8, 15)), hn::BitCast(d8, high)), d8, unpacked);
    const V d = set1(half_at(b + 108));
    for (int i = 0; i < 16; i += kLanes) {
      const auto codes = hn::LoadU(DBytes(), unpacked + i);
      const auto scale = hn::Sub(hn::PromoteTo(DI(), codes), hn::Set(DI(), 32));
      store(hn::Mul(hn::ConvertTo(DF(), scale), d), scales + i);
    }
  }
  template <int kPiece, class Sink>
  static HWY_INLINE void decode(const uint8_t* b, const float* scales, int step, const Sink& sink) {
#pragma GCC unroll 2
    for (int i = 0; i < 32; i += kCodes) {
      // a third bit that is missing takes 4 off
      const Codes missing = shift_right(hn::Not(codes_at(b + i)), step * 4);
      const Codes code =
          hn::Sub(field<kPiece * 2>(codes_at(b + 32 + step * 32 + i), 3), field<kPiece - 2>(missing, 4));
      emit(code, kPiece * 32 + i, ScaledByHalves{scales + step * 8 + kPiece * 2 + i / 16}, sink);
    }
  }
};

struct Q4KBlock {
  static constexpr DType kDType = DType::kQ4_K;
  static constexpr int kBlock = 256, kBytes = 144, kScales = 16, kStep = 64;
  static HWY_INLINE void convert_scales(const uint8_t* b, float* scales) { k4_scales<true>(b, scales); }
  template <int kPiece, class Sink>
  static HWY_INLINE void decode(const uint8_t* b, const float* scales, int step, const Sink& sink) {
#if HWY_TARGET == HWY_AVX3
    if constexpr (kPiece == 0) {
      // By a look-up in the 16 values, the other piece by arithmetic: so both the shuffle and the multiply-add units
      // have work. It ignores the bits above a code's four.
      const V codes = hn::ConvertTo(DF(), hn::Iota(DI(), 0));
      const V table = hn::MulSub(codes, set1(scales[step * 2]), set1(scales[8 + step * 2]));
#pragma GCC unroll 2
      for (int i = 0; i < 32; i += kLanes) {
        const auto pairs = hn::PromoteTo(DI(), hn::LoadU(DBytes(), b + 16 + step * 32 + i));
        sink(i, V{_mm512_permutexvar_ps(pairs.raw, table.raw)});
      }
      return;
    }
#endif
    const ScaledMinus value{scales + step * 2 + kPiece, set1(scales[8 + step * 2 + kPiece])};
#pragma GCC unroll 8
    for (int i = 0; i < 32; i += kLanes) {
      const auto pairs = hn::PromoteTo(DI(), hn::LoadU(DBytes(), b + 16 + step * 32 + i));
      const V code = hn::ConvertTo(DF(), hn::And(pairs, hn::Set(DI(), 15 << (4 * kPiece))));
      sink(kPiece * 32 + i, value(code, i / 16));
    }
  }
};

struct Q5KBlock {
  static constexpr DType kDType = DType::kQ5_K;
  static constexpr int kBlock = 256, kBytes = 176, kScales = 16, kStep = 64;
  static HWY_INLINE void convert_scales(const uint8_t* b, float* scales) { k4_scales<false>(b, scales); }
  template <int kPiece, class Sink>
  static HWY_INLINE void decode(const uint8_t* b, const float* scales, int step, const Sink& sink) {
    const ScaledMinus value{scales + step * 2 + kPiece, set1(scales[8 + step * 2 + kPiece])};
#pragma GCC unroll 2
    for (int i = 0; i < 32; i += kCodes) {
      const Codes low = field<kPiece * 4>(codes_at(b + 48 + step * 32 + i), 15);
      const Codes fifth = field<kPiece - 4>(shift_right(codes_at(b + 16 + i), step * 2), 16);
      emit(hn::Or(low, fifth), kPiece * 32 + i, value, sink);
    }
  }
};

struct Q6KBlock {
  static constexpr DType kDType = DType::kQ6_K;
  static constexpr int kBlock = 256, kBytes = 210, kScales = 16, kStep = 128;
  static HWY_INLINE void convert_scales(const uint8_t* b, float* scales) {
    const V d = set1(half_at(b + 208));
    for (int i = 0; i < 16; i += kLanes) {
      const auto codes = hn::LoadU(DSignedBytes(), reinterpret_cast<const int8_t*>(b) + 192 + i);
      store(hn::Mul(hn::ConvertTo(DF(), hn::PromoteTo(DI(), codes)), d), scales + i);
    }
  }
  template <int kPiece, class Sink>
  static HWY_INLINE void decode(const uint8_t* b, const float* scales, int step, const Sink& sink) {
#pragma GCC unroll 2
    for (int i = 0; i < 32; i += kCodes) {
      const Codes low = field<kPiece / 2 * 4>(codes_at(b + step * 64 + kPiece % 2 * 32 + i), 15);
      const Codes high = field<kPiece * 2 - 4>(codes_at(b + 128 + step * 32 + i), 48);
      emit(hn::Sub(hn::Or(low, high), byte_set(32)), kPiece * 32 + i,
           ScaledByHalves{scales + step * 8 + kPiece * 2 + i / 16}, sink);
    }
  }
};

struct Iq4XsBlock {
  static constexpr DType kDType = DType::kIQ4_XS;
  static constexpr int kBlock = 256, kBytes = 136, kScales = 16, kStep = 64;  // 8 scales are used
  static HWY_INLINE void convert_scales(const uint8_t* b, float* scales) {
    const hn::RebindToUnsigned<DI> du;
    uint16_t pairs;
    uint32_t nibbles;
    std::memcpy(&pairs, b + 2, 2);
    std::memcpy(&nibbles, b + 4, 4);
    const V d = set1(half_at(b));
    for (int i = 0; i < 8; i += kLanes) {
      const auto group = hn::Iota(du, static_cast<uint32_t>(i));
      const auto low = hn::And(hn::Shr(hn::Set(du, nibbles), hn::ShiftLeft<2>(group)), hn::Set(du, 15));
      const auto high = hn::And(hn::Shr(hn::Set(du, pairs), hn::ShiftLeft<1>(group)), hn::Set(du, 3));
      const auto scale = hn::Sub(hn::BitCast(DI(), hn::Or(low, hn::ShiftLeft<4>(high))), hn::Set(DI(), 32));
      store(hn::Mul(hn::ConvertTo(DF(), scale), d), scales + i);
    }
  }
  template <int kPiece, class Sink>
  static HWY_INLINE void decode(const uint8_t* b, const float* scales, int step, const Sink& sink) {
    iq4_group(b + 8 + (step * 2 + kPiece) * 16, scales + step * 2 + kPiece, kPiece * 32, sink);
  }
};

// Calls with_block(Block()) for a type that has a decoder here; returns whether it has.
template <class F>
HWY_INLINE bool dispatch_group(DType dtype, const F& with_block) {
  switch (dtype) {
    case DType::kQ2_K: with_block(Q2KBlock()); return true;
    case DType::kQ3_K: with_block(Q3KBlock()); return true;
    case DType::kQ4_K: with_block(Q4KBlock()); return true;
    case DType::kQ5_K: with_block(Q5KBlock()); return true;
    case DType::kQ6_K: with_block(Q6KBlock()); return true;
    case DType::kIQ4_XS: with_block(Iq4XsBlock()); return true;
    default: return false;
  }
}

// The scales of `Block` in memory; the compiler must not see through it, or it would broadcast from registers again.
template <class Block>
HWY_INLINE void make_scales(const uint8_t* b, float* scales /* [kScales] */) {
  Block::convert_scales(b, scales);
  asm("" : "+m"(*reinterpret_cast<float(*)[Block::kScales]>(scales)));
}

// A row into memory. Whether the type has a decoder here.
inline bool decode_groups(DType dtype, const uint8_t* src, float* dst, int64_t cols) {
  return dispatch_group(dtype, [&](auto block) HWY_ATTR {
    using Block = decltype(block);
    for (int64_t i = 0; i < cols; i += Block::kBlock, src += Block::kBytes) {
      alignas(64) float scales[Block::kScales];
      make_scales<Block>(src, scales);
      for (int step = 0; step < Block::kBlock / Block::kStep; ++step) {
        float* out = dst + i + step * Block::kStep;
        for_pieces<Block::kStep / 32>([&](auto piece) HWY_ATTR __attribute__((always_inline)) {
          Block::template decode<decltype(piece)::value>(
              src, scales, step, [out](int at, V values) HWY_ATTR __attribute__((always_inline)) {
                store(values, out + at);
              });
        });
      }
    }
  });
}

#else

template <class F>
bool dispatch_group(DType, const F&) {
  return false;
}
inline bool decode_groups(DType, const uint8_t*, float*, int64_t) { return false; }

#endif

}  // namespace restkv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // RESTKV_KERNELS_CPU_GROUP_BLOCKS_H_
