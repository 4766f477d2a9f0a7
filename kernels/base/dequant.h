// Rows of any weight type to f32, scalar and exact: the oracle of the fast kernels, and the loaders' way to
// read small tensors. The values are those of gguf-py and of ggml's C code, bit for bit
// (../shared/golden/gguf).
#pragma once

#include <cstdint>

#include "kernels/base/tensor.h"

namespace restkv {

// dst[0..cols) = values of the row at src; cols must be whole blocks. dtype: every weight type (not I32, U8).
void dequantize_row(DType dtype, const void* src, float* dst, int64_t cols);

// The 16 values a 4-bit code of IQ4_NL and IQ4_XS stands for.
inline constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                          1,    13,   25,  38,  53,  69,  89,  113};

// Scale and minimum of one of the eight 32-value groups of Q4_K and Q5_K, 6 bits each in 12 bytes: group j <
// 4 lies in the low bits of bytes j and j + 4; the others have their low nibbles in bytes 8..11 and their top
// bits above the former.
struct ScaleMin {
  uint8_t scale;
  uint8_t min;
};
inline ScaleMin k4_scale_min(const uint8_t* packed /* [12] */, int group) {
  if (group < 4) {
    return {static_cast<uint8_t>(packed[group] & 63), static_cast<uint8_t>(packed[group + 4] & 63)};
  }
  const uint8_t low = packed[group + 4];
  return {static_cast<uint8_t>((low & 15) | ((packed[group - 4] >> 6) << 4)),
          static_cast<uint8_t>((low >> 4) | ((packed[group] >> 6) << 4))};
}

}  // namespace restkv
