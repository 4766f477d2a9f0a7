// Vector decoders of the remaining GGUF types, a row at a time into memory (layouts: kernels/base/dequant.cpp). Every one
// of them makes 16 codes as signed bytes, then value = scale * code - min; the product is exact in f32 (at most 17 bits
// of scale times 5 of code where there is a minimum), so the floats are those of the scalar code, bit for bit.
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
  return f16_to_f32(bits);
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

// out[0..16) = scale * code - min, codes signed.
HWY_INLINE void write16(Codes codes, float scale, float min, float* out) {
  const hn::Full128<int8_t> d8;
  const auto bytes = hn::BitCast(d8, codes);
  const V s = set1(scale), m = set1(min);
#if HWY_MAX_BYTES == 64
  store(hn::MulSub(hn::ConvertTo(DF(), hn::PromoteTo(DI(), bytes)), s, m), out);
#elif HWY_MAX_BYTES == 32
  const hn::Half<hn::Full128<int8_t> > d8_half;
  store(hn::MulSub(hn::ConvertTo(DF(), hn::PromoteTo(DI(), hn::LowerHalf(d8_half, bytes))), s, m), out);
  store(hn::MulSub(hn::ConvertTo(DF(), hn::PromoteTo(DI(), hn::UpperHalf(d8_half, bytes))), s, m), out + 8);
#else
  alignas(16) int8_t lanes[16];
  hn::Store(bytes, d8, lanes);
  for (int i = 0; i < 16; ++i) out[i] = scale * static_cast<float>(lanes[i]) - min;
#endif
}

// 16 where bit i of the two bytes at p is set, for value i.
HWY_INLINE Codes fifth_bits(const uint8_t* p) {
  alignas(16) static constexpr uint8_t kBits[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const Codes low = byte_set(p[0]), high = byte_set(p[1]);
  return value_if(hn::ConcatUpperLower(DCodes(), high, low), hn::Load(DCodes(), kBits), 16);
}

HWY_INLINE void q5_0(const uint8_t* b, float* out) {
  const float d = half_at(b);
  const Codes bytes = codes_at(b + 6);
  write16(hn::Sub(hn::Or(field(bytes, 0, 15), fifth_bits(b + 2)), byte_set(16)), d, 0.0f, out);
  write16(hn::Sub(hn::Or(field(bytes, 4, 15), fifth_bits(b + 4)), byte_set(16)), d, 0.0f, out + 16);
}

HWY_INLINE void q5_1(const uint8_t* b, float* out) {
  const float d = half_at(b), m = half_at(b + 2);
  const Codes bytes = codes_at(b + 8);
  write16(hn::Or(field(bytes, 0, 15), fifth_bits(b + 4)), d, -m, out);
  write16(hn::Or(field(bytes, 4, 15), fifth_bits(b + 6)), d, -m, out + 16);
}

HWY_INLINE void q2_k(const uint8_t* b, float* out) {
  const float d = half_at(b + 80), dmin = half_at(b + 82);
  for (int g = 0; g < 16; ++g) {
    const Codes bytes = codes_at(b + 16 + g / 8 * 32 + g % 2 * 16);
    write16(field(bytes, g % 8 / 2 * 2, 3), d * static_cast<float>(b[g] & 15),
            dmin * static_cast<float>(b[g] >> 4), out + g * 16);
  }
}

HWY_INLINE void q3_k(const uint8_t* b, float* out) {
  const uint8_t* packed = b + 96;
  const float d = half_at(b + 108);
  for (int g = 0; g < 16; ++g) {
    const int low = g < 8 ? packed[g] & 15 : packed[g - 8] >> 4;
    const int high = (packed[8 + g % 4] >> (g / 4 * 2)) & 3;
    const Codes bytes = codes_at(b + 32 + g / 8 * 32 + g % 2 * 16);
    const Codes third = value_if(codes_at(b + g % 2 * 16), byte_set(1 << (g / 2)), 4);
    write16(hn::Sub(hn::Or(field(bytes, g % 8 / 2 * 2, 3), third), byte_set(4)),
            d * static_cast<float>((low | high << 4) - 32), 0.0f, out + g * 16);
  }
}

HWY_INLINE void q4_k(const uint8_t* b, float* out) {
  const float d = half_at(b), dmin = half_at(b + 2);
  for (int g = 0; g < 8; ++g) {
    const ScaleMin group = k4_scale_min(b + 4, g);
    const float scale = d * static_cast<float>(group.scale), min = dmin * static_cast<float>(group.min);
    for (int i = 0; i < 32; i += 16) {
      write16(field(codes_at(b + 16 + g / 2 * 32 + i), g % 2 * 4, 15), scale, min, out + g * 32 + i);
    }
  }
}

HWY_INLINE void q5_k(const uint8_t* b, float* out) {
  const float d = half_at(b), dmin = half_at(b + 2);
  for (int g = 0; g < 8; ++g) {
    const ScaleMin group = k4_scale_min(b + 4, g);
    const float scale = d * static_cast<float>(group.scale), min = dmin * static_cast<float>(group.min);
    for (int i = 0; i < 32; i += 16) {
      const Codes fifth = value_if(codes_at(b + 16 + i), byte_set(1 << g), 16);
      write16(hn::Or(field(codes_at(b + 48 + g / 2 * 32 + i), g % 2 * 4, 15), fifth), scale, min,
              out + g * 32 + i);
    }
  }
}

HWY_INLINE void q6_k(const uint8_t* b, float* out) {
  const float d = half_at(b + 208);
  for (int g = 0; g < 16; ++g) {
    const int half = g / 8, quarter = g % 8 / 2, i = g % 2 * 16;
    const Codes low = field(codes_at(b + half * 64 + quarter % 2 * 32 + i), quarter / 2 * 4, 15);
    const Codes high = field(codes_at(b + 128 + half * 32 + i), quarter * 2, 3);
    const Codes code =
        hn::Or(low, hn::BitCast(DCodes(), hn::ShiftLeft<4>(hn::BitCast(hn::Full128<uint16_t>(), high))));
    write16(hn::Sub(code, byte_set(32)), d * static_cast<float>(static_cast<int8_t>(b[192 + g])), 0.0f,
            out + g * 16);
  }
}

HWY_INLINE Codes iq4_values(Codes codes) {
  const auto table = hn::BitCast(DCodes(), hn::LoadU(hn::Full128<int8_t>(), kIq4Values));
  return hn::TableLookupBytes(table, codes);
}

HWY_INLINE void iq4_nl(const uint8_t* b, float* out) {
  const float d = half_at(b);
  const Codes bytes = codes_at(b + 2);
  write16(iq4_values(field(bytes, 0, 15)), d, 0.0f, out);
  write16(iq4_values(field(bytes, 4, 15)), d, 0.0f, out + 16);
}

HWY_INLINE void iq4_xs(const uint8_t* b, float* out) {
  const float d = half_at(b);
  const int high = b[2] | b[3] << 8;
  for (int g = 0; g < 8; ++g) {
    const int scale = ((b[4 + g / 2] >> (g % 2 * 4)) & 15) | ((high >> (2 * g)) & 3) << 4;
    const float group_d = d * static_cast<float>(scale - 32);
    const Codes bytes = codes_at(b + 8 + g * 16);
    write16(iq4_values(field(bytes, 0, 15)), group_d, 0.0f, out + g * 32);
    write16(iq4_values(field(bytes, 4, 15)), group_d, 0.0f, out + g * 32 + 16);
  }
}

// Whether the type has a decoder here.
inline bool decode_groups(DType dtype, const uint8_t* src, float* dst, int64_t cols) {
  const DTypeInfo& info = dtype_info(dtype);
  const auto each_block = [&](const auto& decode) HWY_ATTR {
    for (int64_t i = 0; i < cols; i += info.block_elems, src += info.block_bytes) decode(src, dst + i);
    return true;
  };
  switch (dtype) {
    case DType::kQ5_0: return each_block([](const uint8_t* b, float* out) HWY_ATTR { q5_0(b, out); });
    case DType::kQ5_1: return each_block([](const uint8_t* b, float* out) HWY_ATTR { q5_1(b, out); });
    case DType::kQ2_K: return each_block([](const uint8_t* b, float* out) HWY_ATTR { q2_k(b, out); });
    case DType::kQ3_K: return each_block([](const uint8_t* b, float* out) HWY_ATTR { q3_k(b, out); });
    case DType::kQ4_K: return each_block([](const uint8_t* b, float* out) HWY_ATTR { q4_k(b, out); });
    case DType::kQ5_K: return each_block([](const uint8_t* b, float* out) HWY_ATTR { q5_k(b, out); });
    case DType::kQ6_K: return each_block([](const uint8_t* b, float* out) HWY_ATTR { q6_k(b, out); });
    case DType::kIQ4_NL: return each_block([](const uint8_t* b, float* out) HWY_ATTR { iq4_nl(b, out); });
    case DType::kIQ4_XS: return each_block([](const uint8_t* b, float* out) HWY_ATTR { iq4_xs(b, out); });
    default: return false;
  }
}

#else

inline bool decode_groups(DType, const uint8_t*, float*, int64_t) { return false; }

#endif

}  // namespace restkv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // RESTKV_KERNELS_CPU_GROUP_BLOCKS_H_
