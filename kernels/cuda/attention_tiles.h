// What the attention kernels share: the entries of one KV head (pages, then scratch rows, one index space), padded rows in
// shared memory, the queries of a group packed into one index, and which entries each of them sees.
//   query i of a segment: row i / G, head i % G of the group
//   entries: [0, prefix_len) pages | [prefix_len, prefix_len + N) scratch
#pragma once

#include <bit>
#include <cmath>
#include <limits>

#include "kernels/cuda/elements.h"
#include "kernels/cuda/paged_view.h"
#include "kernels/cuda/tile.h"

namespace restkv::cuda {

inline constexpr float kLog2e = 1.44269504088896340736f;
inline constexpr float kLn2 = 0.69314718055994530942f;
inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Row of a tile in shared memory, in elements: 16 bytes more than D, so that the 8 rows of an ldmatrix fall into different
// banks.
template <class T, int32_t kDim>
inline constexpr int32_t kRowElements = kDim + 16 / static_cast<int32_t>(sizeof(T));

// Loops over register arrays are unrolled whole, but for f32: that is for tests, and its products are long code.
template <class T>
inline constexpr int kUnrollTiles = kIsHalf<T> ? 64 : 1;

// One segment of either op; device memory.
struct AttentionSegment {
  const int32_t* pages;   // [K, stride]
  const int32_t* kv_len;  // [K], null: no pages
  const void* k;          // [num_kv, K*D] scratch rows, null: none
  const void* v;          // [num_kv, K*D]
  int64_t k_stride;       // elements
  int64_t v_stride;
  int64_t row_begin;  // of q, out, positions
  int32_t num_rows;
  int32_t stride;  // pages per head
  int32_t num_kv;
  int32_t first_position;  // of scratch row 0
};

// The entries of one KV head.
template <class T>
struct EntryRows {
  PagedView<T> cache;
  const int32_t* pages;
  const T* k;  // this head's columns
  const T* v;
  int64_t k_stride;
  int64_t v_stride;
  int32_t prefix_len;
  int32_t num_kv;
  int32_t first_position;
  int32_t slot_shift;  // S = 1 << slot_shift

  __device__ EntryRows(const AttentionSegment& segment, const PagedView<T>& view, int32_t shift,
                       int32_t kv_head, int32_t dim)
      : cache(view),
        pages(segment.kv_len ? segment.pages + int64_t{kv_head} * segment.stride : nullptr),
        k(segment.k ? static_cast<const T*>(segment.k) + int64_t{kv_head} * dim : nullptr),
        v(segment.k ? static_cast<const T*>(segment.v) + int64_t{kv_head} * dim : nullptr),
        k_stride(segment.k_stride),
        v_stride(segment.v_stride),
        prefix_len(segment.kv_len ? segment.kv_len[kv_head] : 0),
        num_kv(segment.num_kv),
        first_position(segment.first_position),
        slot_shift(shift) {}

  __device__ __forceinline__ const T* key(int32_t entry) const {
    if (entry >= prefix_len) return k + (entry - prefix_len) * k_stride;
    const int64_t slot = entry & ((1 << slot_shift) - 1);
    return cache.keys(pages[entry >> slot_shift]) + slot * cache.head_dim;
  }
  __device__ __forceinline__ const T* value(int32_t entry) const {
    if (entry >= prefix_len) return v + (entry - prefix_len) * v_stride;
    const int64_t slot = entry & ((1 << slot_shift) - 1);
    return cache.values(pages[entry >> slot_shift]) + slot * cache.head_dim;
  }
  // An address to copy nothing from.
  __device__ __forceinline__ const T* any() const { return k ? k : reinterpret_cast<const T*>(cache.pool); }
  // First entry of the pages whose position is above `position`; positions rise.
  __device__ int32_t first_above(int32_t position) const {
    int32_t begin = 0, end = prefix_len;
    while (begin < end) {
      const int32_t middle = (begin + end) / 2;
      const int32_t* positions = cache.positions(pages[middle >> slot_shift]);
      if (positions[middle & ((1 << slot_shift) - 1)] <= position) {
        begin = middle + 1;
      } else {
        end = middle;
      }
    }
    return begin;
  }
};

// Entries [begin, end) that a query sees; an empty range is [INT32_MAX, 0), so that minima and maxima ignore it.
struct Visible {
  int32_t begin = INT32_MAX;
  int32_t end = 0;
};

// `position` sees positions up to its own and, with a window, above position - window.
template <class T>
__device__ __forceinline__ Visible visible_entries(const EntryRows<T>& rows, int32_t position,
                                                   int32_t window) {
  Visible seen;
  const int32_t scratch_end = min(max(position - rows.first_position + 1, 0), rows.num_kv);
  seen.end = scratch_end > 0 || rows.prefix_len == 0 ? rows.prefix_len + scratch_end : rows.prefix_len;
  if (scratch_end == 0 && rows.prefix_len > 0) {
    // the usual decode row sees all: one look at the last entry
    const int32_t last = rows.prefix_len - 1;
    const int32_t* positions = rows.cache.positions(rows.pages[last >> rows.slot_shift]);
    if (positions[last & ((1 << rows.slot_shift) - 1)] > position) seen.end = rows.first_above(position);
  }
  seen.begin = 0;
  if (window > 0) {
    const int32_t hidden = position - window;  // the last position out of sight
    const int32_t scratch_begin = rows.num_kv > 0 ? hidden - rows.first_position + 1 : 0;
    seen.begin = scratch_begin > 0 ? rows.prefix_len + scratch_begin : rows.first_above(hidden);
  }
  if (seen.begin >= seen.end) seen = Visible{};
  return seen;
}

// Queries [first, first + kCount) of a segment as T into tile [kCount, kRowElements]; zeros for others and for columns from D on.
template <class T, int32_t kDim, int32_t kCount, int32_t kThreads>
__device__ __forceinline__ void load_queries(const std::byte* q, DType dtype, int64_t q_stride,
                                             const AttentionSegment& segment, int32_t kv_head, int32_t group,
                                             int32_t dim, int32_t first, T* tile) {
  constexpr int32_t kFours = kDim / 4;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kCount * kFours; i += kThreads) {
    const int32_t r = i / kFours, c = i % kFours * 4;
    const int32_t query = first + r;
    float4 x = {0.0f, 0.0f, 0.0f, 0.0f};
    if (query < segment.num_rows * group && c < dim) {
      const int64_t t = segment.row_begin + query / group;
      const int64_t head = int64_t{kv_head} * group + query % group;
      x = load_four(q + (t * q_stride + head * dim + c) * bytes_of_element(dtype), dtype);
    }
    T* out = tile + r * kRowElements<T, kDim> + c;
    if constexpr (kIsHalf<T>) {
      store_vector(out, uint2{pack2<T>(x.x, x.y), pack2<T>(x.z, x.w)});
    } else {
      store_vector(out, x);
    }
  }
}

// Two neighbouring b operands at once: of columns n and n + 8 of a product, one ldmatrix for both.
//   tile [16 n, 16 k], rows are the columns of b
template <class T>
__device__ __forceinline__ void load_b_pair(MmaB<T> (&b)[2], const T* tile, uint32_t stride) {
  if constexpr (kIsHalf<T>) {
    const uint32_t lane = lane_idx();
    uint32_t r[4];
    ldmatrix_x4(r, tile + ((lane & 7u) + (lane >> 4) * 8) * stride + ((lane >> 3) & 1u) * 8);
    b[0].r[0] = r[0];
    b[0].r[1] = r[1];
    b[1].r[0] = r[2];
    b[1].r[1] = r[3];
  } else {
    load_b(b[0], tile, stride);
    load_b(b[1], tile + 8 * stride, stride);
  }
}
//   tile [16 k, 16 n]
template <class T>
__device__ __forceinline__ void load_b_pair_trans(MmaB<T> (&b)[2], const T* tile, uint32_t stride) {
  if constexpr (kIsHalf<T>) {
    const uint32_t lane = lane_idx();
    uint32_t r[4];
    ldmatrix_x4_trans(r, tile + (lane & 15u) * stride + (lane >> 4) * 8);
    b[0].r[0] = r[0];
    b[0].r[1] = r[1];
    b[1].r[0] = r[2];
    b[1].r[1] = r[3];
  } else {
    load_b_trans(b[0], tile, stride);
    load_b_trans(b[1], tile + 8, stride);
  }
}

// A logit in units of log2: scaled, capped where the model caps.
__device__ __forceinline__ float log2_logit(float dot, float scale, float softcap) {
  if (softcap > 0.0f) return softcap * tanhf(dot * scale / softcap) * kLog2e;
  return dot * (scale * kLog2e);
}

// From a head dim at run time to the padded one of kernels.
template <class F>
void dispatch_head_dim(int32_t dim, F&& run) {
  CHECK(dim > 0 && dim % 8 == 0 && dim <= 256) << "head dim " << dim << ": multiples of 8 up to 256";
  if (dim <= 64) return run.template operator()<64>();
  if (dim <= 96) return run.template operator()<96>();
  if (dim <= 128) return run.template operator()<128>();
  return run.template operator()<256>();
}

inline int32_t slot_shift(const PagedCacheView& cache) {
  CHECK(std::has_single_bit(static_cast<uint32_t>(cache.slots)))
      << "pages of " << cache.slots << " slots: powers of 2";
  return std::countr_zero(static_cast<uint32_t>(cache.slots));
}

}  // namespace restkv::cuda
