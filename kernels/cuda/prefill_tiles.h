// How prefill_attention.cu fills its tiles in shared memory, in few instructions: a thread owns the same 16 bytes of a row in
// all tiles and every kRowsAtOnce-th row, so that what an address depends on is worked out once.
#pragma once

#include <bit>

#include "kernels/cuda/attention_tiles.h"

namespace restkv::cuda {

template <class T, int32_t kDim, int32_t kThreads>
struct TileColumns {
  static constexpr int32_t kPiece = 16 / static_cast<int32_t>(sizeof(T));  // elements of 16 bytes
  static constexpr int32_t kLanes = std::bit_ceil(static_cast<uint32_t>(kDim / kPiece));
  static constexpr int32_t kRowsAtOnce = kThreads / kLanes;
  static constexpr int32_t kRow = kRowElements<T, kDim>;
  static_assert(kThreads % kLanes == 0 && kTileKeys<T, kDim> % kRowsAtOnce == 0);

  __device__ static __forceinline__ int32_t row() { return static_cast<int32_t>(threadIdx.x) / kLanes; }
  __device__ static __forceinline__ int32_t column() {
    return static_cast<int32_t>(threadIdx.x) % kLanes * kPiece;
  }
};

// Zeros in the columns from D on of a tile of kRows rows. copy_rows leaves them alone.
template <class T, int32_t kDim, int32_t kRows, int32_t kThreads>
__device__ __forceinline__ void clear_padding(int32_t dim, T* tile) {
  using Columns = TileColumns<T, kDim, kThreads>;
  if (Columns::column() < dim || Columns::column() >= kDim) return;
  for (int32_t r = Columns::row(); r < kRows; r += Columns::kRowsAtOnce) {
    store_vector(tile + r * Columns::kRow + Columns::column(), uint4{});
  }
}

// Copies in flight: keys, or values, of entries [first, first + kTileKeys) to columns [0, D) of `tile`; zeros for entries
// that are not seen. The caller commits.
template <bool kIsValues, class T, int32_t kDim, int32_t kThreads>
__device__ __forceinline__ void copy_rows(const EntryRows<T>& rows, int32_t dim, int32_t first,
                                          const Visible& seen, T* tile) {
  using Columns = TileColumns<T, kDim, kThreads>;
  constexpr int32_t kStep = Columns::kRowsAtOnce;
  constexpr int32_t kPasses = kTileKeys<T, kDim> / kStep;
  constexpr int32_t kBatch = kPasses % 4 == 0 ? 4 : 1;
  const int32_t c = Columns::column();
  if (c >= dim) return;
  const int32_t entry = first + Columns::row();
  T* to = tile + Columns::row() * Columns::kRow + c;
  const int32_t prefix_len = rows.prefix_len;
  const bool is_whole = first >= seen.begin && first + kTileKeys<T, kDim> <= seen.end;
  if (is_whole && first >= prefix_len) {
    const int64_t stride = kIsValues ? rows.v_stride : rows.k_stride;
    const T* from = (kIsValues ? rows.v : rows.k) + (entry - prefix_len) * stride + c;
#pragma unroll
    for (int32_t j = 0; j < kPasses; ++j) {
      cp_async16(to + j * kStep * Columns::kRow, from);
      from += kStep * stride;
    }
  } else if (is_whole && first + kTileKeys<T, kDim> <= prefix_len) {
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
        cp_async16(to + (j + b) * kStep * Columns::kRow, page + slot * cache.head_dim + c);
      }
    }
  } else {  // the first and last tiles of a block, and the one where pages end
#pragma unroll 1
    for (int32_t j = 0; j < kPasses; ++j) {
      const int32_t e = entry + j * kStep;
      const bool is_there = e >= seen.begin && e < seen.end;
      const T* from = rows.any();
      if (is_there) from = (kIsValues ? rows.value(e) : rows.key(e)) + c;
      cp_async16(to + j * kStep * Columns::kRow, from, is_there ? 16 : 0);
    }
  }
}

// Queries [first, first + kCount) of a segment as T into tile [kCount, kRowElements]; zeros for others and for columns from D on.
template <class T, int32_t kDim, int32_t kCount, int32_t kThreads>
__device__ __forceinline__ void load_query_rows(const std::byte* q, DType dtype, int64_t q_stride,
                                                const AttentionSegment& segment, int32_t kv_head,
                                                int32_t group, int32_t dim, int32_t first, T* tile) {
  using Columns = TileColumns<T, kDim, kThreads>;
  const int32_t c = Columns::column();
  if (c >= kDim) return;
  const int32_t num_queries = segment.num_rows * group;
  const int64_t row_begin = segment.row_begin;
#pragma unroll 2
  for (int32_t r = Columns::row(); r < kCount; r += Columns::kRowsAtOnce) {
    const int32_t query = first + r;
    const bool is_there = query < num_queries && c < dim;
    const int64_t t = row_begin + query / group;
    const int64_t head = int64_t{kv_head} * group + query % group;
    const std::byte* from = q + (t * q_stride + head * dim + c) * bytes_of_element(dtype);
    float4 x[Columns::kPiece / 4] = {};
    T* to = tile + r * Columns::kRow + c;
    if constexpr (kIsHalf<T>) {
      if (is_there) {
        x[0] = load_four(from, dtype);
        x[1] = load_four(from + 4 * bytes_of_element(dtype), dtype);
      }
      store_vector(to, uint4{pack2<T>(x[0].x, x[0].y), pack2<T>(x[0].z, x[0].w), pack2<T>(x[1].x, x[1].y),
                             pack2<T>(x[1].z, x[1].w)});
    } else {
      if (is_there) x[0] = load_four(from, dtype);
      store_vector(to, x[0]);
    }
  }
}

}  // namespace restkv::cuda
