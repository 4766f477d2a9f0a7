// Block formats of GGUF, one function each: a block of 32 (Q4_0 .. Q8_0, IQ4_NL) or 256 (K quants, IQ4_XS)
// values.
//   Q?_0, IQ4: value = d * code            Q?_1, K: value = d * scale_g * code - dmin * min_g
// d, dmin are f16; the order of the products is that of ggml's C code, so that results are equal to the bit.
#include "kernels/base/dequant.h"

#include <cstring>

#include "kernels/base/float16.h"

namespace restkv {
namespace {

float half_at(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, 2);
  return f16_to_f32(bits);
}

uint32_t u32_at(const uint8_t* p) {
  uint32_t bits;
  std::memcpy(&bits, p, 4);
  return bits;
}

// d | 16 bytes: value i in the low nibble of byte i, value i + 16 in the high one.
void q4_0(const uint8_t* b /* [18] */, float* out /* [32] */) {
  const float d = half_at(b);
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<float>((b[2 + i] & 15) - 8) * d;
    out[i + 16] = static_cast<float>((b[2 + i] >> 4) - 8) * d;
  }
}

// d | m | 16 bytes.
void q4_1(const uint8_t* b /* [20] */, float* out /* [32] */) {
  const float d = half_at(b), m = half_at(b + 2);
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<float>(b[4 + i] & 15) * d + m;
    out[i + 16] = static_cast<float>(b[4 + i] >> 4) * d + m;
  }
}

// The fifth bits of 32 codes are one word, in value order.
int fifth_bit(uint32_t high, int i) { return static_cast<int>((high >> i) & 1u) << 4; }

// d | 32 fifth bits | 16 bytes.
void q5_0(const uint8_t* b /* [22] */, float* out /* [32] */) {
  const float d = half_at(b);
  const uint32_t high = u32_at(b + 2);
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<float>(((b[6 + i] & 15) | fifth_bit(high, i)) - 16) * d;
    out[i + 16] = static_cast<float>(((b[6 + i] >> 4) | fifth_bit(high, i + 16)) - 16) * d;
  }
}

// d | m | 32 fifth bits | 16 bytes.
void q5_1(const uint8_t* b /* [24] */, float* out /* [32] */) {
  const float d = half_at(b), m = half_at(b + 2);
  const uint32_t high = u32_at(b + 4);
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<float>((b[8 + i] & 15) | fifth_bit(high, i)) * d + m;
    out[i + 16] = static_cast<float>((b[8 + i] >> 4) | fifth_bit(high, i + 16)) * d + m;
  }
}

// d | 32 signed bytes.
void q8_0(const uint8_t* b /* [34] */, float* out /* [32] */) {
  const float d = half_at(b);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(static_cast<int8_t>(b[2 + i])) * d;
}

// 16 bytes of (scale | min << 4), one a group of 16 values | 64 bytes of 2-bit codes | d | dmin.
// Half h of the block (128 values) has 32 code bytes; bits 2j of byte i are value h * 128 + j * 32 + i.
void q2_k(const uint8_t* b /* [84] */, float* out /* [256] */) {
  const uint8_t* codes = b + 16;
  const float d = half_at(b + 80), dmin = half_at(b + 82);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, shift = i % 128 / 32 * 2;
    const uint8_t group = b[i / 16];
    const float scale = d * static_cast<float>(group & 15), min = dmin * static_cast<float>(group >> 4);
    out[i] = scale * static_cast<float>((codes[half * 32 + i % 32] >> shift) & 3) - min;
  }
}

// 32 bytes of third bits (bit i / 32 of byte i % 32; set means: do not subtract 4) | 64 bytes of 2-bit codes
// as in Q2_K | 12 bytes of sixteen 6-bit scales, biased by 32: low nibbles in bytes 0..7, high bit pairs in
// bytes 8..11 | d.
void q3_k(const uint8_t* b /* [110] */, float* out /* [256] */) {
  const uint8_t* codes = b + 32;
  const uint8_t* packed = b + 96;
  const float d = half_at(b + 108);
  float scales[16];
  for (int g = 0; g < 16; ++g) {
    const int low = g < 8 ? packed[g] & 15 : packed[g - 8] >> 4;
    const int high = (packed[8 + g % 4] >> (g / 4 * 2)) & 3;
    scales[g] = d * static_cast<float>((low | high << 4) - 32);
  }
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, shift = i % 128 / 32 * 2;
    const int code = (codes[half * 32 + i % 32] >> shift) & 3;
    const bool third = ((b[i % 32] >> (i / 32)) & 1) != 0;
    out[i] = scales[i / 16] * static_cast<float>(third ? code : code - 4);
  }
}

// d | dmin | 12 bytes of scales and minima of eight groups of 32 | 128 bytes: 32 bytes hold group 2p in their
// low nibbles and group 2p + 1 in their high ones.
void q4_k(const uint8_t* b /* [144] */, float* out /* [256] */) {
  const float d = half_at(b), dmin = half_at(b + 2);
  for (int g = 0; g < 8; ++g) {
    const ScaleMin group = k4_scale_min(b + 4, g);
    const float scale = d * static_cast<float>(group.scale), min = dmin * static_cast<float>(group.min);
    const uint8_t* codes = b + 16 + g / 2 * 32;
    for (int i = 0; i < 32; ++i) {
      out[g * 32 + i] = scale * static_cast<float>((codes[i] >> (g % 2 * 4)) & 15) - min;
    }
  }
}

// As Q4_K, with 32 bytes of fifth bits (bit g of byte i is that of value g * 32 + i) before the nibbles.
void q5_k(const uint8_t* b /* [176] */, float* out /* [256] */) {
  const float d = half_at(b), dmin = half_at(b + 2);
  const uint8_t* high = b + 16;
  for (int g = 0; g < 8; ++g) {
    const ScaleMin group = k4_scale_min(b + 4, g);
    const float scale = d * static_cast<float>(group.scale), min = dmin * static_cast<float>(group.min);
    const uint8_t* codes = b + 48 + g / 2 * 32;
    for (int i = 0; i < 32; ++i) {
      const int code = ((codes[i] >> (g % 2 * 4)) & 15) | ((high[i] >> g) & 1) << 4;
      out[g * 32 + i] = scale * static_cast<float>(code) - min;
    }
  }
}

// 128 bytes of low nibbles | 64 bytes of high bit pairs | 16 signed scales, one a group of 16 | d. Codes are
// biased by 32. In half h, quarter j = 0..3: nibble j / 2 of byte 32 * (j % 2) + i, bits 2j of high byte i.
void q6_k(const uint8_t* b /* [210] */, float* out /* [256] */) {
  const float d = half_at(b + 208);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, quarter = i % 128 / 32;
    const int low = (b[half * 64 + quarter % 2 * 32 + i % 32] >> (quarter / 2 * 4)) & 15;
    const int high = (b[128 + half * 32 + i % 32] >> (quarter * 2)) & 3;
    const float scale = d * static_cast<float>(static_cast<int8_t>(b[192 + i / 16]));
    out[i] = scale * static_cast<float>((low | high << 4) - 32);
  }
}

// d | 16 bytes: as Q4_0, the code is an index into kIq4Values.
void iq4_nl(const uint8_t* b /* [18] */, float* out /* [32] */) {
  const float d = half_at(b);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>(kIq4Values[b[2 + i] & 15]);
    out[i + 16] = d * static_cast<float>(kIq4Values[b[2 + i] >> 4]);
  }
}

// d | 16 bits of high scale pairs | 4 bytes of low scale nibbles | 128 bytes. Eight groups of 32, 6-bit
// scales biased by 32; a group's 16 bytes hold its codes as in IQ4_NL.
void iq4_xs(const uint8_t* b /* [136] */, float* out /* [256] */) {
  const float d = half_at(b);
  const int high = b[2] | b[3] << 8;
  for (int g = 0; g < 8; ++g) {
    const int scale = ((b[4 + g / 2] >> (g % 2 * 4)) & 15) | ((high >> (2 * g)) & 3) << 4;
    const float group_d = d * static_cast<float>(scale - 32);
    const uint8_t* codes = b + 8 + g * 16;
    for (int i = 0; i < 16; ++i) {
      out[g * 32 + i] = group_d * static_cast<float>(kIq4Values[codes[i] & 15]);
      out[g * 32 + i + 16] = group_d * static_cast<float>(kIq4Values[codes[i] >> 4]);
    }
  }
}

template <class Block>
void each_block(DType dtype, const void* src, float* dst, int64_t cols, Block block) {
  const DTypeInfo& info = dtype_info(dtype);
  const uint8_t* bytes = static_cast<const uint8_t*>(src);
  for (int64_t i = 0; i < cols; i += info.block_elems, bytes += info.block_bytes) block(bytes, dst + i);
}

}  // namespace

void dequantize_row(DType dtype, const void* src, float* dst, int64_t cols) {
  CHECK(cols % dtype_info(dtype).block_elems == 0) << dtype_info(dtype).name << " x " << cols;
  switch (dtype) {
    case DType::kF32: std::memcpy(dst, src, static_cast<size_t>(cols) * sizeof(float)); return;
    case DType::kF16:
      return each_block(dtype, src, dst, cols, [](const uint8_t* b, float* out) { *out = half_at(b); });
    case DType::kBF16:
      return each_block(dtype, src, dst, cols, [](const uint8_t* b, float* out) {
        *out = bf16_to_f32(static_cast<uint16_t>(b[0] | b[1] << 8));
      });
    case DType::kQ4_0: return each_block(dtype, src, dst, cols, q4_0);
    case DType::kQ4_1: return each_block(dtype, src, dst, cols, q4_1);
    case DType::kQ5_0: return each_block(dtype, src, dst, cols, q5_0);
    case DType::kQ5_1: return each_block(dtype, src, dst, cols, q5_1);
    case DType::kQ8_0: return each_block(dtype, src, dst, cols, q8_0);
    case DType::kQ2_K: return each_block(dtype, src, dst, cols, q2_k);
    case DType::kQ3_K: return each_block(dtype, src, dst, cols, q3_k);
    case DType::kQ4_K: return each_block(dtype, src, dst, cols, q4_k);
    case DType::kQ5_K: return each_block(dtype, src, dst, cols, q5_k);
    case DType::kQ6_K: return each_block(dtype, src, dst, cols, q6_k);
    case DType::kIQ4_NL: return each_block(dtype, src, dst, cols, iq4_nl);
    case DType::kIQ4_XS: return each_block(dtype, src, dst, cols, iq4_xs);
    case DType::kI32:
    case DType::kU8: break;
  }
  CHECK(false) << "not a weight type: " << dtype_info(dtype).name;
}

}  // namespace restkv
