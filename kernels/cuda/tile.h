// Tiles of tensor-core products for T = bf16, f16 or f32 (f32: exact, for tests), over the functions of device.h.
//   MmaA<T> 16 x 16 (m, k), MmaB<T> 16 x 8 (k, n), accumulators float[4] of 16 x 8: d += a * b.
// lane = 4 * g + t holds of d: (g, 2t) (g, 2t+1) (g+8, 2t) (g+8, 2t+1). All functions are calls of a whole warp; tiles in
// shared memory, rows of `stride` elements, each row 16-byte aligned for 16-bit types.
#pragma once

#include "kernels/cuda/device.h"

namespace restkv::cuda {

template <class T>
struct MmaA {
  uint32_t r[4];
};
template <>
struct MmaA<float> {
  float r[8];
};
template <class T>
struct MmaB {
  uint32_t r[2];
};
template <>
struct MmaB<float> {
  float r[4];
};

// tile [16 m, 16 k]
template <class T>
__device__ __forceinline__ void load_a(MmaA<T>& a, const T* tile, uint32_t stride) {
  const uint32_t lane = lane_idx();
  if constexpr (kIsHalf<T>) {
    ldmatrix_x4(a.r, tile + (lane & 15u) * stride + (lane >> 4) * 8);
  } else {
    const float* row = tile + (lane >> 2) * stride + (lane & 3u) * 2;
    for (uint32_t i = 0; i < 2; ++i) {
      a.r[i] = row[i];
      a.r[2 + i] = row[8 * stride + i];
      a.r[4 + i] = row[8 + i];
      a.r[6 + i] = row[8 * stride + 8 + i];
    }
  }
}

// tile [16 k, 16 m]: the transpose of a.
template <class T>
__device__ __forceinline__ void load_a_trans(MmaA<T>& a, const T* tile, uint32_t stride) {
  const uint32_t lane = lane_idx();
  if constexpr (kIsHalf<T>) {
    ldmatrix_x4_trans(a.r, tile + ((lane & 7u) + (lane >> 4) * 8) * stride + ((lane >> 3) & 1u) * 8);
  } else {
    const float* column = tile + (lane & 3u) * 2 * stride + (lane >> 2);
    for (uint32_t i = 0; i < 2; ++i) {
      a.r[i] = column[i * stride];
      a.r[2 + i] = column[i * stride + 8];
      a.r[4 + i] = column[(8 + i) * stride];
      a.r[6 + i] = column[(8 + i) * stride + 8];
    }
  }
}

// tile [8 n, 16 k]: rows are the columns of b.
template <class T>
__device__ __forceinline__ void load_b(MmaB<T>& b, const T* tile, uint32_t stride) {
  const uint32_t lane = lane_idx();
  if constexpr (kIsHalf<T>) {
    ldmatrix_x2(b.r, tile + (lane & 7u) * stride + ((lane >> 3) & 1u) * 8);
  } else {
    const float* row = tile + (lane >> 2) * stride + (lane & 3u) * 2;
    for (uint32_t i = 0; i < 2; ++i) {
      b.r[i] = row[i];
      b.r[2 + i] = row[8 + i];
    }
  }
}

// tile [16 k, 8 n]
template <class T>
__device__ __forceinline__ void load_b_trans(MmaB<T>& b, const T* tile, uint32_t stride) {
  const uint32_t lane = lane_idx();
  if constexpr (kIsHalf<T>) {
    ldmatrix_x2_trans(b.r, tile + (lane & 15u) * stride);
  } else {
    const float* column = tile + (lane & 3u) * 2 * stride + (lane >> 2);
    for (uint32_t i = 0; i < 2; ++i) {
      b.r[i] = column[i * stride];
      b.r[2 + i] = column[(8 + i) * stride];
    }
  }
}

// The accumulators of two neighbouring 16 x 8 tiles as the a operand (16 x 16) of the next product.
template <class T>
__device__ __forceinline__ void a_from_accumulators(MmaA<T>& a, const float (&left)[4],
                                                    const float (&right)[4]) {
  if constexpr (kIsHalf<T>) {
    a.r[0] = pack2<T>(left[0], left[1]);
    a.r[1] = pack2<T>(left[2], left[3]);
    a.r[2] = pack2<T>(right[0], right[1]);
    a.r[3] = pack2<T>(right[2], right[3]);
  } else {
    for (uint32_t i = 0; i < 4; ++i) {
      a.r[i] = left[i];
      a.r[4 + i] = right[i];
    }
  }
}

template <class T>
__device__ __forceinline__ void mma(float (&d)[4], const MmaA<T>& a, const MmaB<T>& b) {
  if constexpr (kIsHalf<T>) {
    mma_m16n8k16<T>(d, a.r, b.r);
  } else {
    mma_m16n8k16_f32(d, a.r, b.r);
  }
}

// Sum and maximum over the lanes of a warp, the same in every lane; a NaN does not survive warp_max.
__device__ __forceinline__ float warp_sum(float v) {
  for (uint32_t bits = 16; bits > 0; bits >>= 1) v += shuffle_xor(v, bits);
  return v;
}
__device__ __forceinline__ float warp_max(float v) {
  for (uint32_t bits = 16; bits > 0; bits >>= 1) v = fmaxf(v, shuffle_xor(v, bits));
  return v;
}

}  // namespace restkv::cuda
