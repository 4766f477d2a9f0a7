// Vector decoders of the GGUF types whose blocks hold 256 values in groups with scales of their own (layouts:
// kernels/base/dequant.cpp). value = scale * code - min; the product is exact in f32 (at most 17 bits of scale times 5 of
// code where there is a minimum), so the floats are those of the scalar code, bit for bit.
//
// A decoder has: kBlock values in kBytes bytes, in kParts parts of 32; convert_scales(block, scales), which makes all kScales
// f32 of a block; and decode<part>(block, scales, sink), which hands the 32 values from part * 32 on to
// sink(column, vector), columns rising. The scales go through memory because a broadcast from there costs a load, where
// one from a register takes the look-up unit, which the codes need. What parts share, as bytes widened to lanes, the
// compiler finds: they follow each other without a loop.
#if defined(RESTKV_KERNELS_CPU_GROUP_BLOCKS_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RESTKV_KERNELS_CPU_GROUP_BLOCKS_H_
#undef RESTKV_KERNELS_CPU_GROUP_BLOCKS_H_
#else
#define RESTKV_KERNELS_CPU_GROUP_BLOCKS_H_
#endif

#include "kernels/base/dequant.h"
#include "kernels/cpu/code_vectors.h"
#include "kernels/cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace restkv::cpu::HWY_NAMESPACE {

#if RESTKV_VECTORS

// Sixteen 6-bit scales and minima of Q4_K and Q5_K: scales [8], then minima [8]. kInPlace: the odd scales are for codes times 16.
template <bool kInPlace>
HWY_INLINE void k4_scales(const uint8_t* b, float* scales) {
  alignas(32) static constexpr float kPlaces[8] = {1, 1.0f / 16, 1, 1.0f / 16, 1, 1.0f / 16, 1, 1.0f / 16};
  uint32_t words[3];  // one at a time: a load of a part of what was just stored waits for it
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) std::memcpy(words + i, b + 4 + i * 4, 4);
  // four each: scales in the six low bits of word 0, minima in those of word 1, then both in the nibbles of word 2 and,
  // their bits 4 and 5, in the two high bits of words 0 and 1
  const uint32_t high_scales = (words[2] & 0x0F0F0F0F) | (words[0] >> 2 & 0x30303030);
  const uint32_t high_mins = (words[2] >> 4 & 0x0F0F0F0F) | (words[1] >> 2 & 0x30303030);
  const F8 d = half_lanes<0>(b), dmin = half_lanes<1>(b);
  eight_scales((words[0] & 0x3F3F3F3F) | static_cast<uint64_t>(high_scales) << 32,
               [&](int i) HWY_ATTR { return kInPlace ? hn::Mul(d, hn::Load(DF8(), kPlaces + i)) : d; },
               scales);
  eight_scales((words[1] & 0x3F3F3F3F) | static_cast<uint64_t>(high_mins) << 32,
               [&](int) HWY_ATTR { return dmin; }, scales + 8);
}

struct Q2KBlock {
  static constexpr DType kDType = DType::kQ2_K;
  static constexpr int kBlock = 256, kParts = 8, kBytes = 84, kScales = 32;
  // Codes that are converted stay at their bits of the byte, so that no shift is needed: scale / 4^j for the pairs of bits 2j.
  static constexpr bool kTables = HWY_TARGET == HWY_AVX3;
  static HWY_INLINE void convert_scales(const uint8_t* b, float* scales /* scales [16], minima [16] */) {
    alignas(32) static constexpr float kPlaces[8] = {
        1, 1, kTables ? 1 : 1.0f / 4, kTables ? 1 : 1.0f / 4, 1.0f / 16, 1.0f / 16, 1.0f / 64, 1.0f / 64};
    const F8 d = half_lanes<2>(b + 76), dmin = half_lanes<3>(b + 76);
#pragma GCC unroll 2
    for (int i = 0; i < 16; i += 8) {
      uint64_t pairs;
      std::memcpy(&pairs, b + i, 8);
      eight_scales(
          pairs & eight_bytes(15), [&](int j) HWY_ATTR { return hn::Mul(d, hn::Load(DF8(), kPlaces + j)); },
          scales + i);
      eight_scales(
          pairs >> 4 & eight_bytes(15), [&](int) HWY_ATTR { return dmin; }, scales + 16 + i);
    }
  }
  template <int kPart, class Sink>
  static HWY_INLINE void decode(const uint8_t* b, const float* scales, const Sink& sink) {
    constexpr int kQuarter = kPart % 4;
#pragma GCC unroll 8
    for (int i = 0; i < 32; i += kLanes) {
      const auto quads = hn::PromoteTo(DI(), hn::LoadU(DBytes(), b + 16 + kPart / 4 * 32 + i));
      const float* group = scales + kPart * 2 + i / 16;
#if HWY_TARGET == HWY_AVX3
      if constexpr (kQuarter < 2) {
        // by a look-up, which sees four bits: a code and its neighbour, which makes no difference to the table
        const auto lane = hn::Iota(DI(), 0);
        const V code =
            hn::ConvertTo(DF(), kQuarter == 0 ? hn::And(lane, hn::Set(DI(), 3)) : hn::ShiftRight<2>(lane));
        const V table = hn::MulSub(code, all_lanes(group), all_lanes(group + 16));
        sink(kPart * 32 + i, V{_mm512_permutexvar_ps(quads.raw, table.raw)});
        continue;
      }
#endif
      const V code = hn::ConvertTo(DF(), hn::And(quads, hn::Set(DI(), 3 << (2 * kQuarter))));
      sink(kPart * 32 + i, hn::MulSub(code, all_lanes(group), all_lanes(group + 16)));
    }
  }
};

struct Q3KBlock {
  static constexpr DType kDType = DType::kQ3_K;
  static constexpr int kBlock = 256, kParts = 8, kBytes = 110, kScales = 16;
  // Scales of the upper 64 of 128 values are for codes times 32.
  static constexpr bool kInPlace = HWY_TARGET == HWY_AVX3;
  static HWY_INLINE void convert_scales(const uint8_t* b, float* scales) {
    alignas(32) static constexpr float kPlaces[8] = {1, 1, 1, 1, 1.0f / 32, 1.0f / 32, 1.0f / 32, 1.0f / 32};
    uint64_t nibbles;
    uint32_t pairs;
    std::memcpy(&nibbles, b + 96, 8);
    std::memcpy(&pairs, b + 104, 4);
    const auto high = [&](int shift) { return static_cast<uint64_t>(pairs >> shift & 0x03030303) << 4; };
    const F8 d = half_lanes<3>(b + 102);
    const auto factor = [&](int i)
                            HWY_ATTR { return kInPlace ? hn::Mul(d, hn::Load(DF8(), kPlaces + i)) : d; };
    eight_scales(minus_32((nibbles & eight_bytes(15)) | high(0) | high(2) << 32), factor, scales);
    eight_scales(minus_32((nibbles >> 4 & eight_bytes(15)) | high(4) | high(6) << 32), factor, scales + 8);
  }
  template <int kPart, class Sink>
  static HWY_INLINE void decode(const uint8_t* b, const float* scales, const Sink& sink) {
    constexpr int kHalf = kPart / 4, kQuarter = kPart % 4;
    scales += kPart * 2;
#if HWY_TARGET == HWY_AVX3
    // Bytes of two codes each, quarters j and j + 2: two bits in bits 1 and 2 or 5 and 6, above them a one where the third bit is
    // missing, which takes 4 off. The lower code is looked up, with a neighbour's bit that makes no difference to the table; the
    // upper one is a signed number. The compiler makes the bytes once for both quarters.
    constexpr int kLower = kQuarter % 2, kThird = kHalf * 4 + kLower;
    const Codes missing = hn::Not(codes_at(b));
    const Codes quads = shifted<kLower * 2 - 1>(codes_at(b + 32 + kHalf * 32));
    const Codes lower = hn::IfVecThenElse(byte_set(0x08), shifted<kThird - 3>(missing), quads);
    const Codes both = hn::IfVecThenElse(byte_set(0x80), shifted<kThird + 2 - 7>(missing), lower);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const hn::Half<DSignedCodes> d16;
      const auto bytes = hn::BitCast(DSignedCodes(), both);
      const auto pairs = hn::PromoteTo(DI(), i == 0 ? hn::LowerHalf(d16, bytes) : hn::UpperHalf(d16, bytes));
      if constexpr (kQuarter < 2) {
        const auto lane = hn::ShiftRight<1>(hn::Iota(DI(), 0));
        const auto codes = hn::Sub(hn::And(lane, hn::Set(DI(), 3)), hn::And(lane, hn::Set(DI(), 4)));
        const V table = hn::Mul(hn::ConvertTo(DF(), codes), all_lanes(scales + i));
        sink(kPart * 32 + i * 16, V{_mm512_permutexvar_ps(pairs.raw, table.raw)});
      } else {
        const V code = hn::ConvertTo(DF(), hn::And(pairs, hn::Set(DI(), -32)));
        sink(kPart * 32 + i * 16, hn::Mul(code, all_lanes(scales + i)));
      }
    }
#else
#pragma GCC unroll 2
    for (int i = 0; i < 32; i += kCodes) {
      const Codes missing = field<kPart - 2>(hn::Not(codes_at(b + i)), 4);
      const Codes code = hn::Sub(field<kQuarter * 2>(codes_at(b + 32 + kHalf * 32 + i), 3), missing);
      emit(code, kPart * 32 + i, ScaledByHalves{scales + i / 16}, sink);
    }
#endif
  }
};

struct Q4KBlock {
  static constexpr DType kDType = DType::kQ4_K;
  static constexpr int kBlock = 256, kParts = 8, kBytes = 144, kScales = 16;
  static HWY_INLINE void convert_scales(const uint8_t* b, float* scales) { k4_scales<true>(b, scales); }
  template <int kPart, class Sink>
  static HWY_INLINE void decode(const uint8_t* b, const float* scales, const Sink& sink) {
    const float *scale = scales + kPart, *min = scale + 8;
    const uint8_t* nibbles = b + 16 + kPart / 2 * 32;
#if HWY_TARGET == HWY_AVX3
    if constexpr (kPart % 2 == 0) {
      // By a look-up in the 16 values, the next part by arithmetic: so both the look-up and the conversion units
      // have work. It ignores the bits above a code's four.
      const V codes = hn::ConvertTo(DF(), hn::Iota(DI(), 0));
      const V table = hn::MulSub(codes, all_lanes(scale), all_lanes(min));
#pragma GCC unroll 2
      for (int i = 0; i < 32; i += kLanes) {
        const auto pairs = hn::PromoteTo(DI(), hn::LoadU(DBytes(), nibbles + i));
        sink(kPart * 32 + i, V{_mm512_permutexvar_ps(pairs.raw, table.raw)});
      }
      return;
    }
#endif
#pragma GCC unroll 8
    for (int i = 0; i < 32; i += kLanes) {
      const auto pairs = hn::PromoteTo(DI(), hn::LoadU(DBytes(), nibbles + i));
      const V code = hn::ConvertTo(DF(), hn::And(pairs, hn::Set(DI(), 15 << (kPart % 2 * 4))));
      sink(kPart * 32 + i, hn::MulSub(code, all_lanes(scale), all_lanes(min)));
    }
  }
};

struct Q5KBlock {
  static constexpr DType kDType = DType::kQ5_K;
  static constexpr int kBlock = 256, kParts = 8, kBytes = 176, kScales = 16;
  static HWY_INLINE void convert_scales(const uint8_t* b, float* scales) { k4_scales<false>(b, scales); }
  template <int kPart, class Sink>
  static HWY_INLINE void decode(const uint8_t* b, const float* scales, const Sink& sink) {
#pragma GCC unroll 2
    for (int i = 0; i < 32; i += kCodes) {
      const Codes low = field<kPart % 2 * 4>(codes_at(b + 48 + kPart / 2 * 32 + i), 15);
      const Codes fifth = field<kPart - 4>(codes_at(b + 16 + i), 16);
      emit(hn::Or(low, fifth), kPart * 32 + i, ScaledMinus{scales + kPart, scales + 8 + kPart}, sink);
    }
  }
};

struct Q6KBlock {
  static constexpr DType kDType = DType::kQ6_K;
  static constexpr int kBlock = 256, kParts = 8, kBytes = 210, kScales = 16;
  static HWY_INLINE void convert_scales(const uint8_t* b, float* scales) {
    const F8 d = half_lanes<3>(b + 202);
#pragma GCC unroll 2
    for (int i = 0; i < 16; i += 8)
      eight_scales(
          reinterpret_cast<const int8_t*>(b) + 192 + i, [&](int) HWY_ATTR { return d; }, scales + i);
  }
  template <int kPart, class Sink>
  static HWY_INLINE void decode(const uint8_t* b, const float* scales, const Sink& sink) {
    constexpr int kHalf = kPart / 4, kQuarter = kPart % 4;
#pragma GCC unroll 2
    for (int i = 0; i < 32; i += kCodes) {
      const Codes low = field<kQuarter / 2 * 4>(codes_at(b + kHalf * 64 + kQuarter % 2 * 32 + i), 15);
      const Codes high = field<kQuarter * 2 - 4>(codes_at(b + 128 + kHalf * 32 + i), 48);
      emit(hn::Sub(hn::Or(low, high), byte_set(32)), kPart * 32 + i,
           ScaledByHalves{scales + kPart * 2 + i / 16}, sink);
    }
  }
};

struct Iq4XsBlock {
  static constexpr DType kDType = DType::kIQ4_XS;
  static constexpr int kBlock = 256, kParts = 8, kBytes = 136, kScales = 8;
  static HWY_INLINE void convert_scales(const uint8_t* b, float* scales) {
    uint16_t pairs;
    uint32_t nibbles;
    std::memcpy(&pairs, b + 2, 2);
    std::memcpy(&nibbles, b + 4, 4);
    // eight nibbles and eight pairs of bits, each into a byte of its own
    uint64_t low = nibbles, high = pairs;
    low = (low | low << 16) & 0x0000FFFF0000FFFF;
    low = (low | low << 8) & 0x00FF00FF00FF00FF;
    low = (low | low << 4) & eight_bytes(15);
    high = (high | high << 24) & 0x000000FF000000FF;
    high = (high | high << 12) & 0x000F000F000F000F;
    high = (high | high << 6) & eight_bytes(3);
    const F8 d = half_lanes<0>(b);
    eight_scales(
        minus_32(low | high << 4), [&](int) HWY_ATTR { return d; }, scales);
  }
  template <int kPart, class Sink>
  static HWY_INLINE void decode(const uint8_t* b, const float* scales, const Sink& sink) {
    iq4_group(b + 8 + kPart * 16, scales + kPart, kPart * 32, sink);
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
      float* out = dst + i;
      for_parts<Block::kParts>([&](auto part) HWY_ATTR __attribute__((always_inline)) {
        Block::template decode<decltype(part)::value>(
            src, scales, [out](int at, V values) HWY_ATTR __attribute__((always_inline)) {
              store(values, out + at);
            });
      });
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
