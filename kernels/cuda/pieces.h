// Pieces of 16 bytes, 8 or 4 neighbours of T: one access each where a tensor is made of whole ones, element by element elsewhere.
// Which of the two is a template's argument, so that nothing stands between the loads of a kernel that asks for all of its pieces
// before it computes with the first. The order of its sums is the same on both ways.
#pragma once

#include "kernels/base/tensor.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/plain_values.h"

namespace restkv::cuda {

template <class T>
inline constexpr int32_t kPiece = 16 / static_cast<int32_t>(sizeof(T));

// Rows are whole pieces and begin at multiples of 16 bytes. True of a tensor that is not there.
template <class Any>
bool has_whole_pieces(const Any& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0 &&
         bytes_of(tensor.dtype, tensor.stride) % 16 == 0 && bytes_of(tensor.dtype, tensor.cols) % 16 == 0;
}

// p [count]: what is beyond is 0.
template <bool IsWhole, class T>
__device__ __forceinline__ uint4 load_piece(const T* p, int64_t count) {
  if constexpr (IsWhole) {
    return count > 0 ? load_vector<uint4>(p) : uint4{0, 0, 0, 0};
  } else {
    uint32_t words[4] = {};
#pragma unroll
    for (int32_t i = 0; i < kPiece<T>; ++i) {
      if (i >= count) continue;
      if constexpr (kIsHalf<T>) {
        words[i / 2] |= uint32_t{p[i].bits} << (i % 2 * 16);
      } else {
        words[i] = f32_to_bits(p[i]);
      }
    }
    return {words[0], words[1], words[2], words[3]};
  }
}

template <bool IsWhole, class T>
__device__ __forceinline__ void store_piece(T* p, uint4 piece, int64_t count) {
  if constexpr (IsWhole) {
    if (count > 0) store_vector(p, piece);
  } else {
    const uint32_t words[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
    for (int32_t i = 0; i < kPiece<T>; ++i) {
      if (i >= count) continue;
      if constexpr (kIsHalf<T>) {
        p[i] = T{static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16))};
      } else {
        p[i] = bits_to_f32(words[i]);
      }
    }
  }
}

template <class T>
__device__ __forceinline__ void unpack_piece(uint4 piece, float (&values)[kPiece<T>]) {
  const uint32_t words[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) {
    if constexpr (kIsHalf<T>) {
      const float2 pair = unpack2<T>(words[i]);
      values[2 * i] = pair.x;
      values[2 * i + 1] = pair.y;
    } else {
      values[i] = bits_to_f32(words[i]);
    }
  }
}

template <class T>
__device__ __forceinline__ uint4 pack_piece(const float (&values)[kPiece<T>]) {
  if constexpr (kIsHalf<T>) {
    return {pack2<T>(values[0], values[1]), pack2<T>(values[2], values[3]), pack2<T>(values[4], values[5]),
            pack2<T>(values[6], values[7])};
  } else {
    return {f32_to_bits(values[0]), f32_to_bits(values[1]), f32_to_bits(values[2]), f32_to_bits(values[3])};
  }
}

// N = 4 or 8 neighbours of plain values: as they lie in memory where the values are whole and aligned pieces, else as f32.
template <bool IsWhole, int32_t N>
struct PlainPiece {
  static_assert(N == 4 || N == 8);
  uint32_t words[N] = {};

  // values [at + count]; what is beyond is 0
  __device__ __forceinline__ void load(const PlainValues& values, int64_t at, int64_t count) {
    if constexpr (!IsWhole) {
#pragma unroll
      for (int32_t i = 0; i < N; ++i) words[i] = i < count ? f32_to_bits(values[at + i]) : 0;
    } else if (count <= 0) {
      return;
    } else if (values.kind == 0) {
#pragma unroll
      for (int32_t i = 0; i < N; i += 4) {
        const auto four = load_vector<uint4>(static_cast<const float*>(values.data) + at + i);
        words[i] = four.x;
        words[i + 1] = four.y;
        words[i + 2] = four.z;
        words[i + 3] = four.w;
      }
    } else {
      const f16* from = static_cast<const f16*>(values.data) + at;  // or bf16: two bytes each
      if constexpr (N == 8) {
        const auto four = load_vector<uint4>(from);
        words[0] = four.x;
        words[1] = four.y;
        words[2] = four.z;
        words[3] = four.w;
      } else {
        const auto two = load_vector<uint2>(from);
        words[0] = two.x;
        words[1] = two.y;
      }
    }
  }
  __device__ __forceinline__ void unpack(const PlainValues& values, float (&out)[N]) const {
    const int32_t kind = IsWhole ? values.kind : 0;
#pragma unroll
    for (int32_t i = 0; i < N; i += 2) {
      if (kind > 0) {
        const float2 pair = kind == 1 ? unpack2<f16>(words[i / 2]) : unpack2<bf16>(words[i / 2]);
        out[i] = pair.x;
        out[i + 1] = pair.y;
      } else {
        out[i] = bits_to_f32(words[i]);
        out[i + 1] = bits_to_f32(words[i + 1]);
      }
    }
  }
};

}  // namespace restkv::cuda
