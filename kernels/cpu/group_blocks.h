// Vector decoders of the remaining GGUF types, a block at a time (layouts: kernels/base/dequant.cpp). Every one of them makes
// 16 codes as signed bytes, then value = scale * code - min; the product is exact in f32 (at most 17 bits of scale times
// 5 of code where there is a minimum), so the floats are those of the scalar code, bit for bit. The values go to a sink,
// sink(column in the block, vector), columns rising: into memory for the tile, into a sum for the product of few rows.
#if defined(RESTKV_KERNELS_CPU_GROUP_BLOCKS_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RESTKV_KERNELS_CPU_GROUP_BLOCKS_H_
#undef RESTKV_KERNELS_CPU_GROUP_BLOCKS_H_
#else
#define RESTKV_KERNELS_CPU_GROUP_BLOCKS_H_
#endif

#include "kernels/base/dequant.h"
#include "kernels/base/float16.h"
#include "kernels/cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace restkv::cpu::HWY_NAMESPACE {

#if RESTKV_VECTORS

using DCodes = hn::Full128<uint8_t>;
using Codes = hn::Vec<DCodes>;  // 16 codes

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

// (byte >> shift) & mask; the mask keeps out the bits of the neighbour that 16-bit shifts bring in.
HWY_INLINE Codes field(Codes bytes, int shift, int mask) {
  const hn::Full128<uint16_t> d16;
  const auto shifted = hn::ShiftRightSame(hn::BitCast(d16, bytes), shift);
  return hn::And(hn::BitCast(DCodes(), shifted), byte_set(mask));
}

// `value` where the bits of `bit` are set in the byte, else 0.
HWY_INLINE Codes value_if(Codes bytes, Codes bit, int value) {
  return hn::IfThenElseZero(hn::Eq(hn::And(bytes, bit), bit), byte_set(value));
}

// scale * code - min of 16 signed codes, the values of the columns from `at` on.
template <class Sink>
HWY_INLINE void write16(Codes codes, float scale, float min, const Sink& sink, int at) {
  const hn::Full128<int8_t> d8;
  const auto bytes = hn::BitCast(d8, codes);
#if HWY_MAX_BYTES == 64
  sink(at, hn::MulSub(hn::ConvertTo(DF(), hn::PromoteTo(DI(), bytes)), set1(scale), set1(min)));
#elif HWY_MAX_BYTES == 32
  const V s = set1(scale), m = set1(min);
  const hn::Half<hn::Full128<int8_t> > d8_half;
  sink(at, hn::MulSub(hn::ConvertTo(DF(), hn::PromoteTo(DI(), hn::LowerHalf(d8_half, bytes))), s, m));
  sink(at + 8, hn::MulSub(hn::ConvertTo(DF(), hn::PromoteTo(DI(), hn::UpperHalf(d8_half, bytes))), s, m));
#else
  alignas(16) int8_t lanes[16];
  hn::Store(bytes, d8, lanes);
  for (int i = 0; i < 16; i += kLanes) {
    alignas(64) float values[kLanes];
    for (int k = 0; k < kLanes; ++k) values[k] = scale * static_cast<float>(lanes[i + k]) - min;
    sink(at + i, load(values));
  }
#endif
}

// 16 where bit i of the two bytes at p is set, for value i.
HWY_INLINE Codes fifth_bits(const uint8_t* p) {
  alignas(16) static constexpr uint8_t kBits[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const Codes low = byte_set(p[0]), high = byte_set(p[1]);
  return value_if(hn::ConcatUpperLower(DCodes(), high, low), hn::Load(DCodes(), kBits), 16);
}

template <class Sink>
HWY_INLINE void q5_0(const uint8_t* b, const Sink& out) {
  const float d = half_at(b);
  const Codes bytes = codes_at(b + 6);
  write16(hn::Sub(hn::Or(field(bytes, 0, 15), fifth_bits(b + 2)), byte_set(16)), d, 0.0f, out, 0);
  write16(hn::Sub(hn::Or(field(bytes, 4, 15), fifth_bits(b + 4)), byte_set(16)), d, 0.0f, out, 16);
}

template <class Sink>
HWY_INLINE void q5_1(const uint8_t* b, const Sink& out) {
  const float d = half_at(b), m = half_at(b + 2);
  const Codes bytes = codes_at(b + 8);
  write16(hn::Or(field(bytes, 0, 15), fifth_bits(b + 4)), d, -m, out, 0);
  write16(hn::Or(field(bytes, 4, 15), fifth_bits(b + 6)), d, -m, out, 16);
}

template <class Sink>
HWY_INLINE void q2_k(const uint8_t* b, const Sink& out) {
  const float d = half_at(b + 80), dmin = half_at(b + 82);
#pragma GCC unroll 16
  for (int g = 0; g < 16; ++g) {
    const Codes bytes = codes_at(b + 16 + g / 8 * 32 + g % 2 * 16);
    write16(field(bytes, g % 8 / 2 * 2, 3), d * static_cast<float>(b[g] & 15),
            dmin * static_cast<float>(b[g] >> 4), out, g * 16);
  }
}

template <class Sink>
HWY_INLINE void q3_k(const uint8_t* b, const Sink& out) {
  const uint8_t* packed = b + 96;
  const float d = half_at(b + 108);
#pragma GCC unroll 16
  for (int g = 0; g < 16; ++g) {
    const int low = g < 8 ? packed[g] & 15 : packed[g - 8] >> 4;
    const int high = (packed[8 + g % 4] >> (g / 4 * 2)) & 3;
    const Codes bytes = codes_at(b + 32 + g / 8 * 32 + g % 2 * 16);
    const Codes third = value_if(codes_at(b + g % 2 * 16), byte_set(1 << (g / 2)), 4);
    write16(hn::Sub(hn::Or(field(bytes, g % 8 / 2 * 2, 3), third), byte_set(4)),
            d * static_cast<float>((low | high << 4) - 32), 0.0f, out, g * 16);
  }
}

template <class Sink>
HWY_INLINE void q4_k(const uint8_t* b, const Sink& out) {
  const float d = half_at(b), dmin = half_at(b + 2);
#pragma GCC unroll 16
  for (int g = 0; g < 8; ++g) {
    const ScaleMin group = k4_scale_min(b + 4, g);
    const float scale = d * static_cast<float>(group.scale), min = dmin * static_cast<float>(group.min);
    for (int i = 0; i < 32; i += 16) {
      write16(field(codes_at(b + 16 + g / 2 * 32 + i), g % 2 * 4, 15), scale, min, out, g * 32 + i);
    }
  }
}

template <class Sink>
HWY_INLINE void q5_k(const uint8_t* b, const Sink& out) {
  const float d = half_at(b), dmin = half_at(b + 2);
#pragma GCC unroll 16
  for (int g = 0; g < 8; ++g) {
    const ScaleMin group = k4_scale_min(b + 4, g);
    const float scale = d * static_cast<float>(group.scale), min = dmin * static_cast<float>(group.min);
    for (int i = 0; i < 32; i += 16) {
      const Codes fifth = value_if(codes_at(b + 16 + i), byte_set(1 << g), 16);
      write16(hn::Or(field(codes_at(b + 48 + g / 2 * 32 + i), g % 2 * 4, 15), fifth), scale, min, out,
              g * 32 + i);
    }
  }
}

template <class Sink>
HWY_INLINE void q6_k(const uint8_t* b, const Sink& out) {
  const float d = half_at(b + 208);
#pragma GCC unroll 16
  for (int g = 0; g < 16; ++g) {
    const int half = g / 8, quarter = g % 8 / 2, i = g % 2 * 16;
    const Codes low = field(codes_at(b + half * 64 + quarter % 2 * 32 + i), quarter / 2 * 4, 15);
    const Codes high = field(codes_at(b + 128 + half * 32 + i), quarter * 2, 3);
    const Codes code =
        hn::Or(low, hn::BitCast(DCodes(), hn::ShiftLeft<4>(hn::BitCast(hn::Full128<uint16_t>(), high))));
    write16(hn::Sub(code, byte_set(32)), d * static_cast<float>(static_cast<int8_t>(b[192 + g])), 0.0f, out,
            g * 16);
  }
}

HWY_INLINE Codes iq4_values(Codes codes) {
  const auto table = hn::BitCast(DCodes(), hn::LoadU(hn::Full128<int8_t>(), kIq4Values));
  return hn::TableLookupBytes(table, codes);
}

template <class Sink>
HWY_INLINE void iq4_nl(const uint8_t* b, const Sink& out) {
  const float d = half_at(b);
  const Codes bytes = codes_at(b + 2);
  write16(iq4_values(field(bytes, 0, 15)), d, 0.0f, out, 0);
  write16(iq4_values(field(bytes, 4, 15)), d, 0.0f, out, 16);
}

template <class Sink>
HWY_INLINE void iq4_xs(const uint8_t* b, const Sink& out) {
  const float d = half_at(b);
  const int high = b[2] | b[3] << 8;
#pragma GCC unroll 16
  for (int g = 0; g < 8; ++g) {
    const int scale = ((b[4 + g / 2] >> (g % 2 * 4)) & 15) | ((high >> (2 * g)) & 3) << 4;
    const float group_d = d * static_cast<float>(scale - 32);
    const Codes bytes = codes_at(b + 8 + g * 16);
    write16(iq4_values(field(bytes, 0, 15)), group_d, 0.0f, out, g * 32);
    write16(iq4_values(field(bytes, 4, 15)), group_d, 0.0f, out, g * 32 + 16);
  }
}

// A type of this file as a block: kBlock values in kBytes bytes.
template <DType kType, int kValues, int kSize>
struct GroupBlock {
  static constexpr DType kDType = kType;
  static constexpr int kBlock = kValues;
  static constexpr int kBytes = kSize;
  static constexpr bool kIsGrouped = true;
  template <class Sink>
  static HWY_INLINE void decode(const uint8_t* b, const Sink& out) {
    if constexpr (kType == DType::kQ5_0) q5_0(b, out);
    if constexpr (kType == DType::kQ5_1) q5_1(b, out);
    if constexpr (kType == DType::kQ2_K) q2_k(b, out);
    if constexpr (kType == DType::kQ3_K) q3_k(b, out);
    if constexpr (kType == DType::kQ4_K) q4_k(b, out);
    if constexpr (kType == DType::kQ5_K) q5_k(b, out);
    if constexpr (kType == DType::kQ6_K) q6_k(b, out);
    if constexpr (kType == DType::kIQ4_NL) iq4_nl(b, out);
    if constexpr (kType == DType::kIQ4_XS) iq4_xs(b, out);
  }
};

// Calls with_block(GroupBlock<...>()) for a type that has a decoder here; returns whether it has.
template <class F>
HWY_INLINE bool dispatch_group(DType dtype, const F& with_block) {
  switch (dtype) {
    case DType::kQ5_0: with_block(GroupBlock<DType::kQ5_0, 32, 22>()); return true;
    case DType::kQ5_1: with_block(GroupBlock<DType::kQ5_1, 32, 24>()); return true;
    case DType::kQ2_K: with_block(GroupBlock<DType::kQ2_K, 256, 84>()); return true;
    case DType::kQ3_K: with_block(GroupBlock<DType::kQ3_K, 256, 110>()); return true;
    case DType::kQ4_K: with_block(GroupBlock<DType::kQ4_K, 256, 144>()); return true;
    case DType::kQ5_K: with_block(GroupBlock<DType::kQ5_K, 256, 176>()); return true;
    case DType::kQ6_K: with_block(GroupBlock<DType::kQ6_K, 256, 210>()); return true;
    case DType::kIQ4_NL: with_block(GroupBlock<DType::kIQ4_NL, 32, 18>()); return true;
    case DType::kIQ4_XS: with_block(GroupBlock<DType::kIQ4_XS, 256, 136>()); return true;
    default: return false;
  }
}

// A row into memory. Whether the type has a decoder here.
inline bool decode_groups(DType dtype, const uint8_t* src, float* dst, int64_t cols) {
  return dispatch_group(dtype, [&](auto block) HWY_ATTR {
    using Block = decltype(block);
    for (int64_t i = 0; i < cols; i += Block::kBlock, src += Block::kBytes) {
      float* out = dst + i;
      Block::decode(src, [out](int at, V values) HWY_ATTR { store(values, out + at); });
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
