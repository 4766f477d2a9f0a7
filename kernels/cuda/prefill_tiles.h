// How the prefill kernels fill their tiles in shared memory and how that of mma.sync multiplies by them. Copies take few instructions: a thread owns
// the same 16 bytes of a row in all tiles and every kRowsAtOnce-th row, so that what an address depends on is worked out once.
#pragma once

#include <bit>

#include "kernels/cuda/attention_tiles.h"

namespace restkv::cuda {

// Keys of a tile: rows of up to 256 bytes 64 to a tile, longer ones fewer, so that a block fits sm_86 (f32: sm_80).
template <class T, int32_t kDim>
inline constexpr int32_t kTileKeys = kDim * sizeof(T) <= 256   ? 64
                                     : kDim * sizeof(T) <= 512 ? 32
                                                               : 16;

// Where a tile of kRows rows has its values in shared memory: one row behind the other, each 16 bytes longer than it has to be.
template <class T, int32_t kDimOfTile, int32_t kRowsOfTile>
struct PaddedTile {
  using Element = T;
  static constexpr int32_t kDim = kDimOfTile, kRows = kRowsOfTile;
  static constexpr int32_t kElements = kRows * kRowElements<T, kDim>;
  __device__ static __forceinline__ int32_t at(int32_t row, int32_t column) {
    return row * kRowElements<T, kDim> + column;
  }
  // The same column `rows` rows below, for rows that are whole steps of TileColumns.
  __device__ static __forceinline__ T* below(T* place, int32_t rows) {
    return place + rows * kRowElements<T, kDim>;
  }
};

template <class Tile, int32_t kThreads>
struct TileColumns {
  static constexpr int32_t kPiece =
      16 / static_cast<int32_t>(sizeof(typename Tile::Element));  // elements of 16 bytes
  static constexpr int32_t kLanes = std::bit_ceil(static_cast<uint32_t>(Tile::kDim / kPiece));
  static constexpr int32_t kRowsAtOnce = kThreads / kLanes;
  static_assert(kThreads % kLanes == 0 && Tile::kRows % kRowsAtOnce == 0);

  __device__ static __forceinline__ int32_t row() { return static_cast<int32_t>(threadIdx.x) / kLanes; }
  __device__ static __forceinline__ int32_t column() {
    return static_cast<int32_t>(threadIdx.x) % kLanes * kPiece;
  }
};

// Zeros in the columns from D on of a tile. copy_rows leaves them alone.
template <class Tile, int32_t kThreads>
__device__ __forceinline__ void clear_padding(int32_t dim, typename Tile::Element* tile) {
  using Columns = TileColumns<Tile, kThreads>;
  if (Columns::column() < dim || Columns::column() >= Tile::kDim) return;
  for (int32_t r = Columns::row(); r < Tile::kRows; r += Columns::kRowsAtOnce) {
    store_vector(tile + Tile::at(r, Columns::column()), uint4{});
  }
}

// Copies in flight: keys, or values, of entries [first, first + kRows) to columns [0, D) of `tile`; zeros for entries
// that are not seen. The caller commits.
template <bool kIsValues, class Tile, int32_t kThreads, class T = typename Tile::Element>
__device__ __forceinline__ void copy_rows(const EntryRows<T>& rows, int32_t dim, int32_t first,
                                          const Visible& seen, T* tile) {
  using Columns = TileColumns<Tile, kThreads>;
  constexpr int32_t kStep = Columns::kRowsAtOnce;
  constexpr int32_t kPasses = Tile::kRows / kStep;
  constexpr int32_t kBatch = kPasses % 4 == 0 ? 4 : 1;
  const int32_t c = Columns::column();
  if (c >= dim) return;
  const int32_t entry = first + Columns::row();
  T* to = tile + Tile::at(Columns::row(), c);
  const int32_t prefix_len = rows.prefix_len;
  const bool is_whole = first >= seen.begin && first + Tile::kRows <= seen.end;
  if (is_whole && first >= prefix_len) {
    const int64_t stride = kIsValues ? rows.v_stride : rows.k_stride;
    const T* from = (kIsValues ? rows.v : rows.k) + (entry - prefix_len) * stride + c;
#pragma unroll
    for (int32_t j = 0; j < kPasses; ++j) {
      cp_async16(Tile::below(to, j * kStep), from);
      from += kStep * stride;
    }
  } else if (is_whole && first + Tile::kRows <= prefix_len) {
    const int32_t* table = rows.pages;
    const int32_t shift = rows.slot_shift;
    const PagedView<T> cache = rows.cache;
#pragma unroll
    for (int32_t j = 0; j < kPasses; j += kBatch) {
      int32_t pages[kBatch];
#pragma unroll
      for (int32_t b = 0; b < kBatch; ++b) {
        pages[b] = table[(entry + (j + b) * kStep) >> shift];
      }
#pragma unroll
      for (int32_t b = 0; b < kBatch; ++b) {
        const int64_t slot = (entry + (j + b) * kStep) & ((1 << shift) - 1);
        const T* page = kIsValues ? cache.values(pages[b]) : cache.keys(pages[b]);
        cp_async16(Tile::below(to, (j + b) * kStep), page + slot * cache.head_dim + c);
      }
    }
  } else {  // the first and last tiles of a block, and the one where pages end
#pragma unroll 1
    for (int32_t j = 0; j < kPasses; ++j) {
      const int32_t e = entry + j * kStep;
      const bool is_there = e >= seen.begin && e < seen.end;
      const T* from = rows.any();
      if (is_there) from = (kIsValues ? rows.value(e) : rows.key(e)) + c;
      cp_async16(Tile::below(to, j * kStep), from, is_there ? 16 : 0);
    }
  }
}

// Queries [first, first + kRows) of a segment as T; zeros for others and for columns from D on.
// Those of type T in rows that are 16-byte aligned, as `is_copied` says, are copies in flight; the caller commits.
template <class Tile, int32_t kThreads, class T = typename Tile::Element>
__device__ __forceinline__ void load_query_rows(const std::byte* q, DType dtype, bool is_copied,
                                                int64_t q_stride, const AttentionSegment& segment,
                                                int32_t kv_head, int32_t group, int32_t dim, int32_t first,
                                                T* tile) {
  using Columns = TileColumns<Tile, kThreads>;
  const int32_t c = Columns::column();
  if (c >= Tile::kDim) return;
  const int32_t num_queries = segment.num_rows * group;
  const int64_t row_begin = segment.row_begin;
  const int32_t bytes = bytes_of_element(dtype);
#pragma unroll 2
  for (int32_t r = Columns::row(); r < Tile::kRows; r += Columns::kRowsAtOnce) {
    const int32_t query = first + r;
    const bool is_there = query < num_queries && c < dim;
    const int64_t t = row_begin + query / group;
    const int64_t head = int64_t{kv_head} * group + query % group;
    const std::byte* from = is_there ? q + (t * q_stride + head * dim + c) * bytes : q;
    T* to = tile + Tile::at(r, c);
    if (is_copied) {
      cp_async16(to, from, is_there ? 16 : 0);
      continue;
    }
    float4 x[Columns::kPiece / 4] = {};
    for (int32_t i = 0; i < Columns::kPiece / 4; ++i) {
      if (is_there) x[i] = load_four(from + i * 4 * bytes, dtype);
    }
    if constexpr (kIsHalf<T>) {
      store_vector(to, uint4{pack2<T>(x[0].x, x[0].y), pack2<T>(x[0].z, x[0].w), pack2<T>(x[1].x, x[1].y),
                             pack2<T>(x[1].z, x[1].w)});
    } else {
      store_vector(to, x[0]);
    }
  }
}

// s[r] = queries [16 r.., D] keys^T of a tile; operands are on their way one product ahead.
template <class T, int32_t kDim, int32_t kRowTiles>
__device__ __forceinline__ void multiply_keys(float (&s)[kRowTiles][kTileKeys<T, kDim> / 8][4],
                                              const T* queries, const T* keys) {
  [[maybe_unused]] constexpr int kUnroll = kUnrollTiles<T>;
  constexpr int32_t kRow = kRowElements<T, kDim>;
  constexpr int32_t kSteps = kDim / 16, kPairs = kTileKeys<T, kDim> / 16;
  MmaA<T> a[2][kRowTiles];
  MmaB<T> b[2][2];
#pragma unroll(kUnroll)
  for (int32_t r = 0; r < kRowTiles; ++r) load_a(a[0][r], queries + r * 16 * kRow, kRow);
  load_b_pair(b[0], keys, kRow);
#pragma unroll(kUnroll)
  for (int32_t r = 0; r < kRowTiles; ++r) {
#pragma unroll(kUnroll)
    for (int32_t n = 0; n < kTileKeys<T, kDim> / 8; ++n) {
#pragma unroll(kUnroll)
      for (int32_t e = 0; e < 4; ++e) s[r][n][e] = 0.0f;
    }
  }
#pragma unroll(kUnroll)
  for (int32_t d = 0; d < kSteps; ++d) {
#pragma unroll(kUnroll)
    for (int32_t n = 0; n < kPairs; ++n) {
      const int32_t next = d * kPairs + n + 1;
      if (next < kSteps * kPairs) {
        load_b_pair(b[next % 2], keys + next % kPairs * 16 * kRow + next / kPairs * 16, kRow);
      }
      if (n == kPairs / 2 && d + 1 < kSteps) {
#pragma unroll(kUnroll)
        for (int32_t r = 0; r < kRowTiles; ++r) {
          load_a(a[(d + 1) % 2][r], queries + r * 16 * kRow + (d + 1) * 16, kRow);
        }
      }
#pragma unroll(kUnroll)
      for (int32_t r = 0; r < kRowTiles; ++r) {
        mma(s[r][2 * n], a[d % 2][r], b[(next - 1) % 2][0]);
        mma(s[r][2 * n + 1], a[d % 2][r], b[(next - 1) % 2][1]);
      }
    }
  }
}

// out[r] += weights [16 r.., keys] values of a tile, where take_weights(a, k) works out those of keys [16 k, 16 k + 16), one
// step ahead of the products.
template <class T, int32_t kDim, int32_t kRowTiles, class F>
__device__ __forceinline__ void multiply_values(float (&out)[kRowTiles][kDim / 8][4], const T* values,
                                                F&& take_weights) {
  [[maybe_unused]] constexpr int kUnroll = kUnrollTiles<T>;
  constexpr int32_t kRow = kRowElements<T, kDim>;
  constexpr int32_t kSteps = kTileKeys<T, kDim> / 16, kPairs = kDim / 16;
  MmaA<T> a[2][kRowTiles];
  MmaB<T> b[2][2];
  load_b_pair_trans(b[0], values, kRow);
  take_weights(a[0], 0);
#pragma unroll(kUnroll)
  for (int32_t k = 0; k < kSteps; ++k) {
    if (k + 1 < kSteps) take_weights(a[(k + 1) % 2], k + 1);
#pragma unroll(kUnroll)
    for (int32_t n = 0; n < kPairs; ++n) {
      const int32_t next = k * kPairs + n + 1;
      if (next < kSteps * kPairs) {
        load_b_pair_trans(b[next % 2], values + next / kPairs * 16 * kRow + next % kPairs * 16, kRow);
      }
#pragma unroll(kUnroll)
      for (int32_t r = 0; r < kRowTiles; ++r) {
        mma(out[r][2 * n], a[k % 2][r], b[(next - 1) % 2][0]);
        mma(out[r][2 * n + 1], a[k % 2][r], b[(next - 1) % 2][1]);
      }
    }
  }
}

}  // namespace restkv::cuda
