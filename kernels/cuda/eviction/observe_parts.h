// How observe is cut, and the partial results between its kernels.
//   unit   32 queries of one head of an item; the heads of a group follow each other
//   split  some rows of an item's KV head; which depends on their number N alone
#pragma once

#include "kernels/cuda/eviction/observe_view.h"

namespace restkv::cuda {

// 8 KV heads of groups of 4 fill 132 multiprocessors once with 3 blocks each; a warp's lanes merge the splits of a query.
inline constexpr int32_t kMaxSplits = 24;
inline constexpr int32_t kSplitRows = 128;  // at least
static_assert(kMaxSplits <= 32);

// Of a split's top row: its value is in acc, for the split's other rows weigh more. Else acc is of the others.
inline constexpr int32_t kTopIsIn = 1 << 30;

struct ObserveParams {
  const ObserveView* items;
  PoolView pool;
  LogitShape shape;
  int32_t num_heads;     // H
  int32_t query_blocks;  // units of an item: H * query_blocks
  int32_t first_unit;    // of this launch
  int32_t num_units;     // of this launch
  int32_t max_splits;    //
  int32_t with_values;   // o, o' and their projections
  int32_t normalize;     // norms of R o
  float* stats;          // [units, max_splits, 2, 32] top logit and rest
  int32_t* tops;         // [units, max_splits, 32] row, kTopIsIn; -1: none
  float* accs;           // [units, max_splits, 32, D]
};

struct Unit {
  int32_t item, head, first;
};
__device__ __forceinline__ Unit unit_of(const ObserveParams& p, uint32_t block) {
  const int32_t unit = p.first_unit + static_cast<int32_t>(block), group = p.shape.group;
  const int32_t cell = unit / group;  // (item, KV head, 32 queries)
  const int32_t num_kv_heads = p.num_heads / group, kv_head = cell / p.query_blocks % num_kv_heads;
  return {cell / p.query_blocks / num_kv_heads, kv_head * group + unit % group,
          cell % p.query_blocks * kTileCols};
}

// Whole tiles, at most kMaxSplits times.
__device__ __host__ inline int32_t rows_per_split(int32_t num_rows) {
  const int32_t each = (num_rows + kMaxSplits - 1) / kMaxSplits;
  const int32_t rows = (each + kTileRows - 1) / kTileRows * kTileRows;
  return rows < kSplitRows ? kSplitRows : rows;
}
__device__ __host__ inline int32_t num_splits(int32_t num_rows) {
  const int32_t each = rows_per_split(num_rows);
  return (num_rows + each - 1) / each;
}
// Of any number of rows up to `most`; num_splits does not rise with the rows.
inline int32_t most_splits(int32_t most) {
  return std::clamp((most + kSplitRows - 1) / kSplitRows, 1, kMaxSplits);
}

// observe_kernel where rows and queries are of one 16-bit type, on tensor cores (observe_mma.cu). `type`: mma_type's.
void observe_units(Context& context, const ObserveParams& params, DType type);
// The type that observe_units takes; f32: not this shape.
DType mma_type(const ObserveArgs& args);

// Merges the partial results of units [first_unit, first_unit + num_units) (observe_merge.cu).
void merge_observed(Context& context, const ObserveParams& params);

}  // namespace restkv::cuda
