// Tiles in shared memory as wgmma reads them, and a warpgroup's products over them. A tile is panels of 64 columns, a row of a
// panel 128 bytes, and the 16-byte pieces of row r change places by r % 8 (the 128-byte swizzle), so that neither the copies
// nor the tensor cores meet in a bank.
#pragma once

#include "kernels/cuda/attention_tiles.h"

namespace restkv::cuda {

// Aligned to 1024 bytes, which the pattern counts from.
template <class T, int32_t kDimOfTile, int32_t kRowsOfTile>
struct SwizzledTile {
  static_assert(kIsHalf<T> && kRowsOfTile % 8 == 0);
  using Element = T;
  static constexpr int32_t kDim = kDimOfTile, kRows = kRowsOfTile;
  static constexpr int32_t kPanel = kRows * 64;  // elements
  static constexpr int32_t kElements = (kDim + 63) / 64 * kPanel;
  static constexpr uint32_t kPanelBytes = kPanel * 2;
  static constexpr uint32_t kAtomBytes = 1024;  // of 8 rows of a panel

  __device__ static __forceinline__ int32_t at(int32_t row, int32_t column) {
    return column / 64 * kPanel + row * 64 + ((column / 8 ^ row) % 8 * 8) + column % 8;
  }
  // The same column `rows` rows below, for rows that are whole steps of TileColumns, powers of two.
  __device__ static __forceinline__ T* below(T* place, int32_t rows) {
    if (rows % 8 == 0) return place + rows * 64;
    return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(place) ^ static_cast<uintptr_t>(rows % 8 * 16)) +
           rows * 64;  // in this order one register serves all rows
  }
};

// Bytes from a panel to the next where an operand has one alone.
inline constexpr uint32_t kNoStride = 16;

// s = queries [64, D] keys^T [D, 8 kColumns], both as rows; on its way until the caller has committed and waited.
template <class Queries, class Keys, int kColumns>
__device__ __forceinline__ void multiply_keys(float (&s)[kColumns][4],
                                              const typename Queries::Element* queries,
                                              const typename Keys::Element* keys) {
  static_assert(Keys::kRows == 8 * kColumns && Keys::kDim == Queries::kDim);
  const uint64_t a = wgmma_tile(queries, kNoStride, Queries::kAtomBytes);
  const uint64_t b = wgmma_tile(keys, kNoStride, Keys::kAtomBytes);
#pragma unroll
  for (int32_t d = 0; d < Keys::kDim / 16; ++d) {
    const uint32_t within = static_cast<uint32_t>(d % 4) * 32, panel = static_cast<uint32_t>(d / 4);
    wgmma_shared<typename Keys::Element>(s, wgmma_advance(a, panel * Queries::kPanelBytes + within),
                                         wgmma_advance(b, panel * Keys::kPanelBytes + within), d > 0);
  }
}

// out += weights [64, 16 kSteps] values [16 kSteps, 8 kColumns], the weights in registers.
template <class Values, int kColumns, int kSteps>
__device__ __forceinline__ void multiply_values(float (&out)[kColumns][4],
                                                const uint32_t (&weights)[kSteps][4],
                                                const typename Values::Element* values) {
  static_assert(Values::kRows == 16 * kSteps && Values::kDim == 8 * kColumns);
  const uint64_t b = wgmma_tile(values, Values::kPanelBytes, Values::kAtomBytes);
#pragma unroll
  for (int32_t k = 0; k < kSteps; ++k) {
    wgmma_registers<typename Values::Element>(
        out, weights[k], wgmma_advance(b, static_cast<uint32_t>(k) * 2 * Values::kAtomBytes));
  }
}

}  // namespace restkv::cuda
