// What a block of decode_attention.cu knows and holds: its tile of queries and the plan, its shared memory, which tiles of entries each
// of its warps reads, and the merge of splits.
#pragma once

#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/decode_plan.h"

namespace restkv::cuda {

inline constexpr int32_t kDecodeThreads = 128;
inline constexpr int32_t kDecodeQueries = 16;  // of a block
inline constexpr int32_t kDecodeKeys = 16;     // of a warp's tile; pages have a multiple of that
inline constexpr int32_t kMaxDecodeStages = 3;
inline constexpr int32_t kPartsAtOnce = 16;  // of splits that a thread of the merge waits for
static_assert(kMinSplit % kDecodeKeys == 0 && kFixedSplit % kDecodeKeys == 0, "whole tiles");

// The queries of a block and whose entries they look at: all of it in one place, so that one access is all that stands before
// those to the lengths and page ids.
struct alignas(16) DecodeTile {
  const int32_t* pages;   // [K, stride]
  const int32_t* kv_len;  // [K]
  int64_t row_begin;
  int32_t num_rows;  // 0: nobody's
  int32_t stride;
  int32_t first;  // query of the segment
};

template <class T>
struct DecodeParams {
  const DecodeTile* tiles;  // [all units / K]
  const DecodePlan* plan;
  const int32_t* positions;  // [T]
  const std::byte* q;        // [T, q_stride]
  std::byte* out;            // [T, out_stride]
  float* partial;            // [units, splits, partial_rows, dim] sums; null: one split
  float2* partial_stats;     // [units, splits, partial_rows] m and l
  uint32_t* arrived;         // [units] splits that are done; 0 between launches
  PagedView<T> cache;
  int64_t q_stride;
  int64_t out_stride;
  DType q_type;
  DType out_type;
  int32_t num_kv_heads;
  int32_t first_unit;    // of this launch
  int32_t partial_rows;  // most queries of a tile
  int32_t stages;
  int32_t slot_shift;
  int32_t group;
  int32_t dim;
  int32_t window;
  float scale;
  float softcap;
};

// Warps that read entries.
template <class T, int32_t kDim>
inline constexpr int32_t kReaders = kDim * sizeof(T) <= 256   ? 4
                                    : kDim * sizeof(T) <= 512 ? 2
                                                              : 1;

template <class T, int32_t kDim>
struct DecodeShared {
  static constexpr int32_t kRow = kRowElements<T, kDim>;
  static constexpr int32_t kAccRow = kDim + 8;  // rows of 8 queries on different banks
  static constexpr int32_t kTile = kDecodeKeys * kRow;
  T queries[kDecodeQueries * kRow];
  Visible seen[kDecodeQueries];
  float most[kReaders<T, kDim>][kDecodeQueries];  // of each warp, in units of log2
  float sum[kReaders<T, kDim>][kDecodeQueries];
  uint32_t is_last;
  // K and V of a stage of each warp; the launch made `stages` of them. A warp that is done leaves its sums in its part.
  alignas(16) T ring[kReaders<T, kDim> * 2 * kTile];
  static_assert(2 * kTile * sizeof(T) >= kDecodeQueries * kAccRow * sizeof(float), "a stage holds the sums");
};

// Where the output of a query begins.
template <class T>
__device__ __forceinline__ std::byte* output_of(const DecodeParams<T>& p, const DecodeTile& tile,
                                                int32_t kv_head, int32_t query) {
  const int64_t t = tile.row_begin + (tile.first + query) / p.group;
  const int64_t head = int64_t{kv_head} * p.group + (tile.first + query) % p.group;
  return p.out + (t * p.out_stride + head * p.dim) * bytes_of_element(p.out_type);
}

template <class T>
__device__ __forceinline__ void store_output(const DecodeParams<T>& p, std::byte* out, int32_t d,
                                             const float4& x, float sum) {
  const float4 y =
      sum == 0.0f ? float4{0.0f, 0.0f, 0.0f, 0.0f} : float4{x.x / sum, x.y / sum, x.z / sum, x.w / sum};
  store_four(out + d * bytes_of_element(p.out_type), p.out_type, y);
}

// out = sum_s exp2(m_s - m) acc_s / sum_s exp2(m_s - m) l_s over the parts of a unit's splits, in an order that their number
// alone decides. Each thread goes through all splits of its own columns, many of them on their way at a time, without barriers.
template <class T, int32_t kDim>
__device__ __forceinline__ void merge_splits(const DecodeParams<T>& p, const DecodeTile& tile,
                                             int64_t first_row /* of split 0 */, int32_t num_splits,
                                             int32_t kv_head, int32_t num_queries) {
  constexpr int32_t kFours = kDim / 4;
  for (auto i = static_cast<int32_t>(threadIdx.x); i < num_queries * kFours; i += kDecodeThreads) {
    const int32_t query = i / kFours, d = i % kFours * 4;
    if (d >= p.dim) continue;
    const float2* stats = p.partial_stats + first_row + query;
    const float* parts = p.partial + (first_row + query) * p.dim + d;
    float most = kMinusInfinity, sum = 0.0f;
    float4 x = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int32_t begin = 0; begin < num_splits; begin += kPartsAtOnce) {
      float2 stat[kPartsAtOnce];
      float4 part[kPartsAtOnce];
#pragma unroll
      for (int32_t s = 0; s < kPartsAtOnce; ++s) {
        const int64_t row = int64_t{begin + s} * p.partial_rows;
        stat[s] = {kMinusInfinity, 0.0f};
        part[s] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (begin + s < num_splits) {
          stat[s] = stats[row];
          part[s] = load_vector<float4>(parts + row * p.dim);
        }
      }
      const float before = most;
#pragma unroll
      for (int32_t s = 0; s < kPartsAtOnce; ++s) most = fmaxf(most, stat[s].x);
      const float base = most == kMinusInfinity ? 0.0f : most;
      const float old = exp2_approx(before - base);
      sum *= old;
      x = {x.x * old, x.y * old, x.z * old, x.w * old};
#pragma unroll
      for (int32_t s = 0; s < kPartsAtOnce; ++s) {
        const float factor = exp2_approx(stat[s].x - base);
        sum += factor * stat[s].y;
        x.x += factor * part[s].x;
        x.y += factor * part[s].y;
        x.z += factor * part[s].z;
        x.w += factor * part[s].w;
      }
    }
    store_output(p, output_of(p, tile, kv_head, query), d, x, sum);
  }
}

// What a block knows before the kernels in front of it have ended.
struct DecodeUnit {
  DecodeTile tile;
  DecodePlan plan;
  int32_t unit;
  int32_t kv_head;
  int32_t kv_len;
  int32_t last_page;                // of the last entry
  int32_t pages[kMaxDecodeStages];  // of this warp's first tiles, where there is no window
};

// The tiles of a warp: every kWarps-th from the split's first on, those with an entry of [begin, end).
struct WarpTiles {
  int32_t first;
  int32_t count;
};
template <int32_t kWarps>
__device__ __forceinline__ WarpTiles tiles_of_warp(int32_t warp, int32_t split_begin, int32_t begin,
                                                   int32_t end) {
  const int32_t begin_tile = begin / kDecodeKeys, end_tile = (end + kDecodeKeys - 1) / kDecodeKeys;
  const int32_t first =
      begin_tile + (warp + kWarps - (begin_tile - split_begin / kDecodeKeys) % kWarps) % kWarps;
  const bool has_some = warp < kWarps && begin < end && first < end_tile;
  return {first, has_some ? (end_tile - first + kWarps - 1) / kWarps : 0};
}

}  // namespace restkv::cuda
