// Numbers as two of a 16-bit type for the tensor cores: x = high + low, low = x - high rounded. Of bf16 that is 16 bits, of f16 22,
// which has not f32's range: there numbers are held over a power of two.
#pragma once

#include "kernels/cuda/tile.h"

namespace restkv::cuda {

template <class T>
__device__ __forceinline__ void split_pair(float x, float y, uint32_t& high, uint32_t& low) {
  high = pack2<T>(x, y);
  const float2 rounded = unpack2<T>(high);
  low = pack2<T>(x - rounded.x, y - rounded.y);
}

// The accumulators of two neighbouring tiles as the a operands of the next products (a_from_accumulators).
template <class T>
__device__ __forceinline__ void split_accumulators(const float (&left)[4], const float (&right)[4],
                                                   MmaA<T>& high, MmaA<T>& low) {
#pragma unroll
  for (int32_t i = 0; i < 2; ++i) {
    split_pair<T>(left[2 * i], left[2 * i + 1], high.r[i], low.r[i]);
    split_pair<T>(right[2 * i], right[2 * i + 1], high.r[2 + i], low.r[2 + i]);
  }
}

// The power of two at or below `largest`, which is not negative, and its inverse, both numbers: 2^-126 for 0.
__device__ __forceinline__ void scale_of(float largest, float& scale, float& inverse) {
  const uint32_t exponent = min(max(f32_to_bits(largest) >> 23, 1u), 253u);
  scale = bits_to_f32(exponent << 23);
  inverse = bits_to_f32((254u - exponent) << 23);
}

// The power of two over which f16 holds numbers up to `largest` with all its digits down to 2^-27 of it, and its inverse: they
// come to lie below 2^14.
__device__ __forceinline__ void f16_scale_of(float largest, float& scale, float& inverse) {
  const uint32_t exponent = min(max(f32_to_bits(largest) >> 23, 14u), 254u);
  scale = bits_to_f32((exponent - 13u) << 23);
  inverse = bits_to_f32((267u - exponent) << 23);
}
__device__ __forceinline__ float inverse_of_power(float power) {
  return bits_to_f32((254u << 23) - f32_to_bits(power));
}

}  // namespace restkv::cuda
