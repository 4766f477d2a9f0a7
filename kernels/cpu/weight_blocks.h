// Vector decoders of the weight types in the hot loops: the kLanes values at column c of a row, in registers, for the
// single-row product, and whole rows for the tile. Every product of a scale and a code is exact in f32 (11 bits times at
// most 8), so fused multiply-adds give the same floats as kernels/base/dequant.h, bit for bit.
#if defined(RESTKV_KERNELS_CPU_WEIGHT_BLOCKS_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RESTKV_KERNELS_CPU_WEIGHT_BLOCKS_H_
#undef RESTKV_KERNELS_CPU_WEIGHT_BLOCKS_H_
#else
#define RESTKV_KERNELS_CPU_WEIGHT_BLOCKS_H_
#endif

#include <type_traits>

#include "kernels/base/dequant.h"
#include "kernels/base/float16.h"
#include "kernels/cpu/code_vectors.h"
#include "kernels/cpu/group_blocks.h"
#include "kernels/cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace restkv::cpu::HWY_NAMESPACE {

// A decoder has: kBlock values in kBytes bytes, and decode(block, out) -> out[kBlock / kLanes] vectors. Where its blocks begin with
// f16 scales it may have kScales, their number, and decode(block, scales, out), scales being those f16 as f32 in memory
// (convert_scales): several rows convert side by side, and broadcasts from memory cost a load where broadcasts from a
// register take the shuffle unit, which the codes need.
struct F32Block {
  static constexpr DType kDType = DType::kF32;
  static constexpr int kBlock = kLanes;
  static constexpr int kBytes = 4 * kLanes;
  static HWY_INLINE void decode(const uint8_t* block, V* out) { std::memcpy(&out[0], block, sizeof(V)); }
};

// For decoders with kScales, which targets without vectors have none of.
template <int K, int N>
void convert_scales(const uint8_t* const* rows, int64_t offset, float* scales);

#if RESTKV_VECTORS
using DHalves = hn::Rebind<uint16_t, DI>;

// All lanes the f16 at p.
HWY_INLINE V scale_at(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, 2);
#if HWY_TARGET == HWY_AVX3
  return V{_mm512_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)))};
#elif HWY_TARGET == HWY_AVX2
  return V{_mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)))};
#else
  return set1(f16_to_f32(bits));
#endif
}

// The two f16 at p, converted in one instruction.
HWY_INLINE void scales_at(const uint8_t* p, V& first, V& second) {
#if HWY_TARGET == HWY_AVX3
  const __m128 both = _mm_cvtph_ps(_mm_loadu_si32(p));
  first = V{_mm512_broadcastss_ps(both)};
  second = V{_mm512_broadcastss_ps(_mm_movehdup_ps(both))};
#elif HWY_TARGET == HWY_AVX2
  const __m128 both = _mm_cvtph_ps(_mm_loadu_si32(p));
  first = V{_mm256_broadcastss_ps(both)};
  second = V{_mm256_broadcastss_ps(_mm_movehdup_ps(both))};
#else
  first = scale_at(p);
  second = scale_at(p + 2);
#endif
}

#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2
#define RESTKV_SCALES_IN_MEMORY 1
// The first K f16 of a block of each of N rows -> scales [N, K]. Four are gathered in a general register, as a conversion of four costs
// what one of two costs. The compiler must not see through the memory: it would broadcast from the register again.
template <int K, int N>
HWY_INLINE void convert_scales(const uint8_t* const* rows, int64_t offset, float* scales) {
  constexpr int kRows = 4 / K < N ? 4 / K : N;
#pragma GCC unroll 8
  for (int j = 0; j < N; j += kRows) {
    uint64_t halves = 0;
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      std::conditional_t<K == 1, uint16_t, uint32_t> of_row;
      std::memcpy(&of_row, rows[j + i] + offset, sizeof(of_row));
      halves |= static_cast<uint64_t>(of_row) << (i * K * 16);
    }
    _mm_storeu_ps(scales + K * j, _mm_cvtph_ps(_mm_cvtsi64_si128(static_cast<int64_t>(halves))));
  }
  asm("" : "+m"(*reinterpret_cast<float(*)[K * N]>(scales)));
}
#else
#define RESTKV_SCALES_IN_MEMORY 0
#endif

struct Bf16Block {
  static constexpr DType kDType = DType::kBF16;
  static constexpr int kBlock = kLanes;
  static constexpr int kBytes = 2 * kLanes;
  static HWY_INLINE void decode(const uint8_t* block, V* out) {
    const auto bits = hn::PromoteTo(DI(), hn::LoadU(DHalves(), reinterpret_cast<const uint16_t*>(block)));
    out[0] = hn::BitCast(DF(), hn::ShiftLeft<16>(bits));
  }
};

struct F16Block {
  static constexpr DType kDType = DType::kF16;
  static constexpr int kBlock = kLanes;
  static constexpr int kBytes = 2 * kLanes;
  static HWY_INLINE void decode(const uint8_t* block, V* out) {
    const hn::Rebind<hwy::float16_t, DF> halves;
    out[0] = hn::PromoteTo(DF(), hn::LoadU(halves, reinterpret_cast<const hwy::float16_t*>(block)));
  }
};

struct Q80Block {
  static constexpr DType kDType = DType::kQ8_0;
  static constexpr int kBlock = 32;
  static constexpr int kBytes = 34;
  static HWY_INLINE void decode(const uint8_t* block, V* out) {
    const V d = scale_at(block);
    for (int i = 0; i < 32 / kLanes; ++i) {
      const auto codes = hn::LoadU(DSignedBytes(), reinterpret_cast<const int8_t*>(block) + 2 + i * kLanes);
      out[i] = hn::Mul(hn::ConvertTo(DF(), hn::PromoteTo(DI(), codes)), d);
    }
  }
};

// Values i and i + 16 of 16 bytes of codes: value = convert(code), a vector of the 16 codes' values if kLanes == 16.
template <class F>
HWY_INLINE void for_nibbles(const uint8_t* bytes, V* out, const F& convert) {
#if HWY_TARGET == HWY_AVX3
  // one conversion of 0..15, then a table look-up by code; it ignores the bits above a code's four
  const V table = convert(hn::Iota(DI(), 0));
  const __m512i pairs = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
  out[0] = V{_mm512_permutexvar_ps(pairs, table.raw)};
  out[1] = V{_mm512_permutexvar_ps(_mm512_srli_epi32(pairs, 4), table.raw)};
#else
  for (int i = 0; i < 16 / kLanes; ++i) {
    const auto pairs = hn::PromoteTo(DI(), hn::LoadU(DBytes(), bytes + i * kLanes));
    out[i] = convert(hn::And(pairs, hn::Set(DI(), 15)));
    out[16 / kLanes + i] = convert(hn::ShiftRight<4>(pairs));
  }
#endif
}

struct Q40Block {
  static constexpr DType kDType = DType::kQ4_0;
  static constexpr int kBlock = 32;
  static constexpr int kBytes = 18;
  static HWY_INLINE void decode(const uint8_t* block, V* out) {
    const V d = scale_at(block);
    for_nibbles(block + 2, out, [&](auto code) HWY_ATTR {
      return hn::Mul(hn::ConvertTo(DF(), hn::Sub(code, hn::Set(DI(), 8))), d);
    });
  }
#if RESTKV_SCALES_IN_MEMORY
  static constexpr int kScales = 1;
  static HWY_INLINE void decode(const uint8_t* block, const float* scales, V* out) {
    const V d = all_lanes(scales);
    for_nibbles(block + 2, out, [&](auto code) HWY_ATTR {
      return hn::Mul(hn::ConvertTo(DF(), hn::Sub(code, hn::Set(DI(), 8))), d);
    });
  }
#endif
};

struct Q41Block {
  static constexpr DType kDType = DType::kQ4_1;
  static constexpr int kBlock = 32;
  static constexpr int kBytes = 20;
  static HWY_INLINE void decode(const uint8_t* block, V* out) {
    V d, m;
    scales_at(block, d, m);
    for_nibbles(block + 4, out,
                [&](auto code) HWY_ATTR { return hn::MulAdd(hn::ConvertTo(DF(), code), d, m); });
  }
#if RESTKV_SCALES_IN_MEMORY
  static constexpr int kScales = 2;
  static HWY_INLINE void decode(const uint8_t* block, const float* scales, V* out) {
    const V d = all_lanes(scales), m = all_lanes(scales + 1);
    for_nibbles(block + 4, out,
                [&](auto code) HWY_ATTR { return hn::MulAdd(hn::ConvertTo(DF(), code), d, m); });
  }
#endif
};

// emit() of code_vectors.h into out [32 / kLanes].
template <class Value>
HWY_INLINE void emit_to(Codes codes, int at, const Value& value, V* out) {
  emit(
      codes, at, value, [&](int i, V v) HWY_ATTR __attribute__((always_inline)) { out[i / kLanes] = v; });
}

// Which of the codes from `at` on have their fifth bit set in the word at p, bits in the order of values.
HWY_INLINE hn::Mask<DCodes> fifth_bits(const uint8_t* p, int at) {
  return hn::LoadMaskBits(DCodes(), p + at / 8);
}

struct Q50Block {
  static constexpr DType kDType = DType::kQ5_0;
  static constexpr int kBlock = 32;
  static constexpr int kBytes = 22;
  static HWY_INLINE void decode(const uint8_t* block, V* out) {
    float d = half_at(block);
    decode(block, &d, out);
  }
#if RESTKV_SCALES_IN_MEMORY
  static constexpr int kScales = 1;
#endif

  static HWY_INLINE void decode(const uint8_t* block, const float* scales, V* out) {
    for_nibble_codes(
        block + 6, [&](Codes codes, int at) HWY_ATTR __attribute__((always_inline)) {
          // code - 16 as a signed byte: the nibble where the bit is set, else below high ones
          const Codes high = hn::IfThenZeroElse(fifth_bits(block + 2, at), byte_set(0xF0));
          emit_to(hn::Or(codes, high), at, Scaled{scales}, out);
        });
  }
};

struct Q51Block {
  static constexpr DType kDType = DType::kQ5_1;
  static constexpr int kBlock = 32;
  static constexpr int kBytes = 24;
  static HWY_INLINE void decode(const uint8_t* block, V* out) {
    float scales[2] = {half_at(block), half_at(block + 2)};
    decode(block, scales, out);
  }
#if RESTKV_SCALES_IN_MEMORY
  static constexpr int kScales = 2;
#endif

  static HWY_INLINE void decode(const uint8_t* block, const float* scales, V* out) {
    for_nibble_codes(
        block + 8, [&](Codes codes, int at) HWY_ATTR __attribute__((always_inline)) {
          const Codes high = hn::IfThenElseZero(fifth_bits(block + 4, at), byte_set(16));
          emit_to(hn::Or(codes, high), at, ScaledPlus{scales, scales + 1}, out);
        });
  }
};

struct Iq4NlBlock {
  static constexpr DType kDType = DType::kIQ4_NL;
  static constexpr int kBlock = 32;
  static constexpr int kBytes = 18;
  static HWY_INLINE void decode(const uint8_t* block, V* out) {
    float d = half_at(block);
    decode(block, &d, out);
  }
#if RESTKV_SCALES_IN_MEMORY
  static constexpr int kScales = 1;
#endif

  static HWY_INLINE void decode(const uint8_t* block, const float* scales, V* out) {
    iq4_group(
        block + 2, scales,
        0, [&](int i, V v) HWY_ATTR __attribute__((always_inline)) { out[i / kLanes] = v; });
  }
};
#endif

// Calls with_block(Decoder{}) for a type that has a vector decoder; returns whether it has.
template <class F>
HWY_INLINE bool dispatch_block(DType dtype, const F& with_block) {
  switch (dtype) {
    case DType::kF32: with_block(F32Block()); return true;
#if RESTKV_VECTORS
    case DType::kBF16: with_block(Bf16Block()); return true;
    case DType::kF16: with_block(F16Block()); return true;
    case DType::kQ8_0: with_block(Q80Block()); return true;
    case DType::kQ4_0: with_block(Q40Block()); return true;
    case DType::kQ4_1: with_block(Q41Block()); return true;
    case DType::kQ5_0: with_block(Q50Block()); return true;
    case DType::kQ5_1: with_block(Q51Block()); return true;
    case DType::kIQ4_NL: with_block(Iq4NlBlock()); return true;
#endif
    default: return false;
  }
}

template <class Block>
void decode_row(const uint8_t* src, float* dst, int64_t cols) {
  const int64_t blocks = cols / Block::kBlock;
  for (int64_t i = 0; i < blocks; ++i) {
    V out[Block::kBlock / kLanes];
    Block::decode(src + i * Block::kBytes, out);
    for (int j = 0; j < Block::kBlock / kLanes; ++j) store(out[j], dst + i * Block::kBlock + j * kLanes);
  }
  const int64_t rest = cols - blocks * Block::kBlock;  // of plain types only
  if (rest > 0)
    dequantize_row(Block::kDType, src + blocks * Block::kBytes, dst + blocks * Block::kBlock, rest);
}

inline void decode_weights(DType dtype, const void* src, float* dst, int64_t cols) {
  const auto* bytes = static_cast<const uint8_t*>(src);
  const bool done = dispatch_block(dtype, [&](auto block) { decode_row<decltype(block)>(bytes, dst, cols); });
  if (!done && !decode_groups(dtype, bytes, dst, cols)) dequantize_row(dtype, src, dst, cols);
}

}  // namespace restkv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // RESTKV_KERNELS_CPU_WEIGHT_BLOCKS_H_
