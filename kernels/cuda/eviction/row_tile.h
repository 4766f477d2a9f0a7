// What the eviction kernels read: the rows of one KV head wherever they lie (pages, then scratch), queries (rows or ring),
// and tiles of both as f32 in shared memory. Values are converted on the way in, so every kernel computes in f32.
//   tile: 64 rows x 32 columns of D, one chunk of D at a time; a block is 128 threads
//   thread: a 4 x 4 patch of a [64 rows, 32 columns] product: rows 4 * (tid / 8) + i, columns 4 * (tid % 8) + j
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>

#include "kernels/cuda/device.h"
#include "kernels/cuda/elements.h"
#include "kernels/eviction.h"

namespace restkv::cuda {

inline constexpr int32_t kTileThreads = 128;
inline constexpr int32_t kTileRows = 64;
inline constexpr int32_t kTileCols = 32;
inline constexpr int32_t kTileDepth = 32;
inline constexpr int32_t kRowStride =
    kTileDepth + 1;  // of the row tile: 4 rows apart fall into different banks
inline constexpr int32_t kColStride = kTileCols + 4;  // of the column tile: float4 aligned
static_assert(kTileThreads == (kTileRows / 4) * (kTileCols / 4), "a thread owns a 4 x 4 patch");
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Pages as kernels see them.
struct PoolView {
  std::byte* pool;          // [pages] of page_bytes
  int64_t page_bytes;       //
  int64_t value_offset;     // of V in a page
  int64_t position_offset;  // of pos in a page
  int32_t slots;            // S, a power of two
  int32_t slot_shift;       // S = 1 << slot_shift
  DType dtype;              // f32, f16 or bf16
};

// One item's rows; pointers are device memory.
struct RowsView {
  const int32_t* pages;   // [K, stride]
  const int32_t* kv_len;  // [K], null: no paged part
  const std::byte* k;     // [scratch_rows, K*D]
  const std::byte* v;     // [scratch_rows, K*D]
  int64_t k_row_bytes;
  int64_t v_row_bytes;
  int32_t stride;  // pages per head
  int32_t scratch_rows;
  int32_t first_position;  // of scratch row 0
  DType dtype;             // of the scratch rows
};

struct QueriesView {
  const std::byte* rows;      // [Q, H*D], null: from the ring
  const int32_t* ring_pages;  // [K, ring_stride]
  const int32_t* positions;   // [Q]
  int64_t row_bytes;
  int32_t ring_stride;
  int32_t ring_window;
  int32_t num_queries;  // Q
  DType dtype;          // of rows
};

// The rows of one KV head: [0, num_paged) in pages | [num_paged, num_rows) scratch.
struct DeviceRows {
  const RowsView& source;
  const PoolView& pool;
  const int32_t* pages;
  int32_t num_paged;
  int32_t num_rows;
  int32_t head;
  int32_t dim;

  __device__ DeviceRows(const RowsView& rows, const PoolView& cache, int32_t kv_head, int32_t head_dim)
      : source(rows),
        pool(cache),
        pages(rows.kv_len ? rows.pages + int64_t{kv_head} * rows.stride : nullptr),
        num_paged(rows.kv_len ? rows.kv_len[kv_head] : 0),
        num_rows(num_paged + rows.scratch_rows),
        head(kv_head),
        dim(head_dim) {}

  __device__ DType dtype(int32_t row) const { return row < num_paged ? pool.dtype : source.dtype; }
  __device__ const std::byte* key(int32_t row) const { return at(row, page_of(row), false); }
  __device__ const std::byte* value(int32_t row) const { return at(row, page_of(row), true); }
  __device__ int32_t position(int32_t row) const { return position(row, page_of(row)); }
  __device__ int32_t page_of(int32_t row) const {
    return row < num_paged ? pages[row >> pool.slot_shift] : 0;
  }
  // The pages of rows begin, begin + step ... and their positions, all asked for before the first is used; 0 where there is none.
  template <int32_t N>
  __device__ void pages_of(int32_t begin, int32_t step, int32_t (&out)[N]) const {
#pragma unroll
    for (int32_t u = 0; u < N; ++u) {
      const int32_t row = begin + u * step;
      out[u] = row < num_paged ? pages[row >> pool.slot_shift] : 0;
    }
  }
  template <int32_t N>
  __device__ void positions(int32_t begin, int32_t step, int32_t (&out)[N]) const {
    int32_t page_of_row[N];
    pages_of(begin, step, page_of_row);
#pragma unroll
    for (int32_t u = 0; u < N; ++u) {
      const int32_t row = begin + u * step;
      out[u] = row < num_rows ? position(row, page_of_row[u]) : 0;
    }
  }
  // page_of_row: where it is paged.
  __device__ int32_t position(int32_t row, int32_t page_of_row) const {
    if (row >= num_paged) return source.first_position + (row - num_paged);
    return load_vector<int32_t>(position_at(row, page_of_row));
  }
  // Where the position of a paged row lies.
  __device__ const std::byte* position_at(int32_t row, int32_t page_of_row) const {
    return pool.pool + pool.page_bytes * page_of_row + pool.position_offset + int64_t{4} * slot_of(row);
  }
  __device__ int32_t slot_of(int32_t row) const { return row & (pool.slots - 1); }
  __device__ const std::byte* at(int32_t row, int32_t page_of_row, bool is_value) const {
    if (row < num_paged) {
      const std::byte* page = pool.pool + pool.page_bytes * page_of_row;
      if (is_value) page += pool.value_offset;
      return page + int64_t{slot_of(row)} * dim * bytes_of_element(pool.dtype);
    }
    const int64_t r = row - num_paged;
    const std::byte* base = is_value ? source.v + r * source.v_row_bytes : source.k + r * source.k_row_bytes;
    return base + int64_t{head} * dim * bytes_of_element(source.dtype);
  }
};

// tile[r * stride + c] = value c0 + c of row begin + r, for r < 64, c < columns (a multiple of 4); zero outside of
// [0, count) x [0, D).
__device__ __forceinline__ void load_row_tile(const DeviceRows& rows, bool values, int32_t begin,
                                              int32_t count, int32_t c0, int32_t columns, float* tile,
                                              int32_t stride) {
  const int32_t fours = columns / 4;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kTileRows * fours; i += kTileThreads) {
    const int32_t r = i / fours, c = i % fours * 4;
    float4 x = {0.0f, 0.0f, 0.0f, 0.0f};
    if (r < count && c0 + c < rows.dim) {
      const DType dtype = rows.dtype(begin + r);
      const std::byte* row = values ? rows.value(begin + r) : rows.key(begin + r);
      x = load_four(row + int64_t{c0 + c} * bytes_of_element(dtype), dtype);
    }
    float* out = tile + r * stride + c;
    out[0] = x.x;
    out[1] = x.y;
    out[2] = x.z;
    out[3] = x.w;
  }
}

// Where query i of a query head lies and its type: the pool's for the ring.
__device__ __forceinline__ const std::byte* query_at(const QueriesView& queries, const PoolView& pool,
                                                     int32_t head, int32_t group, int32_t dim, int32_t i,
                                                     DType& dtype) {
  if (queries.rows) {
    dtype = queries.dtype;
    return queries.rows + i * queries.row_bytes + int64_t{head} * dim * bytes_of_element(dtype);
  }
  dtype = pool.dtype;
  const int32_t row = queries.positions[i] % queries.ring_window * group + head % group;
  const int32_t slot = row & (2 * pool.slots - 1);  // a page holds 2 S of them
  const int32_t page =
      queries.ring_pages[int64_t{head / group} * queries.ring_stride + (row >> (pool.slot_shift + 1))];
  return pool.pool + pool.page_bytes * page + int64_t{slot} * dim * bytes_of_element(pool.dtype);
}

// tile[d * kColStride + t] = scale * value c0 + d of query first + t; zero outside.
__device__ __forceinline__ void load_query_tile(const QueriesView& queries, const PoolView& pool,
                                                int32_t head, int32_t group, int32_t dim, int32_t first,
                                                int32_t c0, float scale, float* tile) {
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kTileCols * (kTileDepth / 4); i += kTileThreads) {
    const int32_t t = i / (kTileDepth / 4), d = i % (kTileDepth / 4) * 4;
    float4 x = {0.0f, 0.0f, 0.0f, 0.0f};
    if (first + t < queries.num_queries && c0 + d < dim) {
      DType dtype = DType::kF32;
      const std::byte* q = query_at(queries, pool, head, group, dim, first + t, dtype);
      x = load_four(q + int64_t{c0 + d} * bytes_of_element(dtype), dtype);
    }
    tile[(d + 0) * kColStride + t] = scale * x.x;
    tile[(d + 1) * kColStride + t] = scale * x.y;
    tile[(d + 2) * kColStride + t] = scale * x.z;
    tile[(d + 3) * kColStride + t] = scale * x.w;
  }
}

using Patch = float[4][4];

__device__ __forceinline__ int32_t patch_row() { return static_cast<int32_t>(threadIdx.x) / 8 * 4; }
__device__ __forceinline__ int32_t patch_col() { return static_cast<int32_t>(threadIdx.x) % 8 * 4; }

__device__ __forceinline__ void clear(Patch& acc) {
#pragma unroll
  for (auto& row : acc) {
#pragma unroll
    for (float& x : row) x = 0.0f;
  }
}

// acc += rows [64, row_stride] x columns [32 deep, kColStride].
__device__ __forceinline__ void add_product(const float* rows, int32_t row_stride, const float* columns,
                                            Patch& acc) {
  const float* a = rows + patch_row() * row_stride;
  const float* b = columns + patch_col();
  for (int32_t k = 0; k < kTileDepth; ++k) {
    const float4 y = load_vector<float4>(b + k * kColStride);
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      const float x = a[i * row_stride + k];
      acc[i][0] += x * y.x;
      acc[i][1] += x * y.y;
      acc[i][2] += x * y.z;
      acc[i][3] += x * y.w;
    }
  }
}

// acc += (rows - columns)^2, value by value: the expanded form loses its digits on sinks.
__device__ __forceinline__ void add_distance(const float* rows, int32_t row_stride, const float* columns,
                                             Patch& acc) {
  const float* a = rows + patch_row() * row_stride;
  const float* b = columns + patch_col();
  for (int32_t k = 0; k < kTileDepth; ++k) {
    const float4 y = load_vector<float4>(b + k * kColStride);
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      const float x = a[i * row_stride + k];
      acc[i][0] += (x - y.x) * (x - y.x);
      acc[i][1] += (x - y.y) * (x - y.y);
      acc[i][2] += (x - y.z) * (x - y.z);
      acc[i][3] += (x - y.w) * (x - y.w);
    }
  }
}

// What the logits of a tile need beside rows and queries.
struct LogitShape {
  int32_t dim;
  int32_t group;
  float scale;
  float softcap;   // 0: none
  int32_t window;  // 0: all
};

// acc = capped and masked logits of rows [begin, begin + count) and queries [first, first + 32) of a head; -inf where a
// query does not see a row, and outside of either. row_tile [64, kRowStride] and query_tile [32, kColStride] are scratch;
// row_positions [64] and query_positions [32] hold the positions, visible to all threads. Barriers inside; the tiles are
// free on return.
__device__ __forceinline__ void tile_logits(const DeviceRows& rows, const QueriesView& queries,
                                            const LogitShape& shape, int32_t head, int32_t begin,
                                            int32_t count, int32_t first, const int32_t* row_positions,
                                            const int32_t* query_positions, float* row_tile,
                                            float* query_tile, Patch& acc) {
  clear(acc);
  for (int32_t c0 = 0; c0 < shape.dim; c0 += kTileDepth) {
    load_row_tile(rows, false, begin, count, c0, kTileDepth, row_tile, kRowStride);
    load_query_tile(queries, rows.pool, head, shape.group, shape.dim, first, c0, shape.scale, query_tile);
    sync_threads();
    add_product(row_tile, kRowStride, query_tile, acc);
    sync_threads();
  }
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) {
    const int32_t r = patch_row() + i;
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) {
      const int32_t t = patch_col() + j;
      float& x = acc[i][j];
      if (shape.softcap > 0.0f) x = shape.softcap * tanhf(x / shape.softcap);
      const int32_t distance = query_positions[t] - row_positions[r];
      const bool is_seen = r < count && first + t < queries.num_queries && distance >= 0 &&
                           (shape.window == 0 || distance < shape.window);
      if (!is_seen) x = -kInfinity;
    }
  }
}

// Positions of a tile's rows and queries into shared memory; a barrier must follow.
__device__ __forceinline__ void load_row_positions(const DeviceRows& rows, int32_t begin, int32_t count,
                                                   int32_t* out) {
  for (int32_t r = static_cast<int32_t>(threadIdx.x); r < kTileRows; r += kTileThreads) {
    out[r] = r < count ? rows.position(begin + r) : 0;
  }
}
__device__ __forceinline__ void load_query_positions(const QueriesView& queries, int32_t first,
                                                     int32_t* out) {
  for (int32_t t = static_cast<int32_t>(threadIdx.x); t < kTileCols; t += kTileThreads) {
    out[t] = first + t < queries.num_queries ? queries.positions[first + t] : 0;
  }
}

// acc = x R for columns [e0, e0 + 32): x [64, x_stride] in shared memory, R [D, D] lower triangular with rows `stride`
// apart (so rows from e0 on suffice). column_tile [32, kColStride] is scratch. Barriers inside.
__device__ __forceinline__ void project_columns(const float* x, int32_t x_stride, const float* r,
                                                int64_t stride, int32_t dim, int32_t e0, float* column_tile,
                                                Patch& acc) {
  clear(acc);
  for (int32_t d0 = e0; d0 < dim; d0 += kTileDepth) {
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kTileDepth * kTileCols; i += kTileThreads) {
      const int32_t d = i / kTileCols, e = i % kTileCols;
      column_tile[d * kColStride + e] = d0 + d < dim && e0 + e < dim ? r[(d0 + d) * stride + e0 + e] : 0.0f;
    }
    sync_threads();
    add_product(x + d0, x_stride, column_tile, acc);
    sync_threads();
  }
}

// Row stride of a [64, D] tile that project_columns and add_distance read in chunks of 32 columns: D rounded up to 32 and
// the odd one against bank conflicts.
__device__ __forceinline__ constexpr int32_t padded_stride(int32_t dim) { return (dim + 31) / 32 * 32 + 1; }

}  // namespace restkv::cuda
