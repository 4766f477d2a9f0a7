// What the two prefill kernels share: the plan of a launch (host), what a block works on, the online softmax of a warp's tile
// of 16 queries, and its end. prefill_attention.cu says what is computed.
//   accumulators of a tile of 16 queries: x[n][e] is query g + 8 (e / 2), column 8 n + c + e % 2, with g = lane / 4,
//   c = 2 (lane % 4): of mma.sync and of wgmma
#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/context.h"

namespace restkv::cuda {

// By how much a row's maximum may exceed its m, in units of log2.
inline constexpr float kSlack = 8.0f;

struct QueryTile {
  int32_t segment;
  int32_t first;  // query of the segment
};

template <class T>
struct PrefillParams {
  const AttentionSegment* segments;
  const QueryTile* tiles;    // [grid.x / num_kv_heads]
  const int32_t* positions;  // [T]
  const std::byte* q;        // [T, q_stride]
  std::byte* out;            // [T, out_stride]
  float* lse;                // [T, lse_stride], may be null
  PagedView<T> cache;
  int64_t q_stride;
  int64_t out_stride;
  int64_t lse_stride;
  DType q_type;
  DType out_type;
  bool has_copied_queries;  // load_query_rows
  int32_t num_kv_heads;
  int32_t slot_shift;
  int32_t group;
  int32_t dim;
  int32_t window;
  float unit;  // weights are exp2(unit x); x = q.k, or tanh(cap_scale q.k) where cap_scale > 0
  float cap_scale;
};

// The tiles of queries of a launch, those with most entries first; device memory of this op.
struct PrefillPlan {
  const AttentionSegment* segments = nullptr;
  const QueryTile* tiles = nullptr;
  const int32_t* positions = nullptr;
  uint32_t num_tiles = 0;
};
PrefillPlan plan_prefill(Context& context, const PrefillAttentionArgs& args, int32_t block_queries);

template <class T>
PrefillParams<T> prefill_params(const PrefillAttentionArgs& args, const PrefillPlan& plan) {
  const AttentionShape& shape = args.shape;
  const DType dtype = args.segments[0].k.dtype;
  const bool is_capped = shape.softcap > 0.0f;
  const bool has_copied_queries = args.q.dtype == dtype &&
                                  reinterpret_cast<uintptr_t>(args.q.data) % 16 == 0 &&
                                  args.q.stride * dtype_info(dtype).block_bytes % 16 == 0;
  return {.segments = plan.segments,
          .tiles = plan.tiles,
          .positions = plan.positions,
          .q = static_cast<const std::byte*>(args.q.data),
          .out = static_cast<std::byte*>(args.out.data),
          .lse = static_cast<float*>(args.lse.data),
          .cache = paged_view<T>(args.cache),
          .q_stride = args.q.stride,
          .out_stride = args.out.stride,
          .lse_stride = args.lse.stride,
          .q_type = args.q.dtype,
          .out_type = args.out.dtype,
          .has_copied_queries = has_copied_queries,
          .num_kv_heads = shape.num_kv_heads,
          .slot_shift = slot_shift(args.cache),
          .group = shape.num_heads / shape.num_kv_heads,
          .dim = shape.head_dim,
          .window = shape.window,
          .unit = (is_capped ? shape.softcap : shape.scale) * kLog2e,
          .cap_scale = is_capped ? shape.scale / shape.softcap : 0.0f};
}

// The kernel of sm_90a (prefill_wgmma.cu): caches of 16 bits, cards that have it (DeviceLimits::has_wgmma).
void prefill_wgmma(Context& context, const PrefillAttentionArgs& args);
int32_t prefill_wgmma_shared_bytes(int32_t head_dim);

// What a block works on. Read where it is needed: in registers there is no room for it.
struct BlockWork {
  const AttentionSegment& segment;
  int32_t kv_head;
  int32_t first;  // query of the segment
  int32_t num_queries;

  template <class T>
  __device__ explicit BlockWork(const PrefillParams<T>& p)
      : BlockWork(p, p.tiles[static_cast<int32_t>(blockIdx.x) / p.num_kv_heads]) {}

 private:
  template <class T>
  __device__ BlockWork(const PrefillParams<T>& p, const QueryTile& tile)
      : segment(p.segments[tile.segment]),
        kv_head(static_cast<int32_t>(blockIdx.x) % p.num_kv_heads),
        first(tile.first),
        num_queries(segment.num_rows * p.group) {}
};

// What a warp's queries see: some of them entries [begin, end), all of them [all_begin, all_end).
struct SeenByWarp {
  int32_t begin, end, all_begin, all_end;
};

// In shared memory, where they take no registers.
template <class T, int32_t kQueries, int32_t kWarps>
struct BlockRanges {
  Visible seen[kQueries];  // of each query
  SeenByWarp warps[kWarps];
  Visible some;  // what some query of the block sees
  EntryRows<T> rows;
};

// Fills `seen`, `warps` and `rows`, each warp for its own kQueries / kWarps queries; others see them after a barrier.
template <class T, int32_t kQueries, int32_t kWarps>
__device__ __forceinline__ void find_ranges(const PrefillParams<T>& p,
                                            BlockRanges<T, kQueries, kWarps>& ranges) {
  constexpr int32_t kOfWarp = kQueries / kWarps;
  const auto warp = static_cast<int32_t>(warp_idx());
  const BlockWork work(p);
  const EntryRows<T> rows(work.segment, p.cache, p.slot_shift, work.kv_head, p.dim);
  if (threadIdx.x == 0) ranges.rows = rows;
  SeenByWarp all = {INT32_MAX, 0, 0, INT32_MAX};
  for (int32_t i = static_cast<int32_t>(lane_idx()); i < kOfWarp; i += 32) {
    const int32_t query = work.first + warp * kOfWarp + i;
    Visible seen;
    if (query < work.num_queries) {
      seen = visible_entries(rows, p.positions[work.segment.row_begin + query / p.group], p.window);
    }
    ranges.seen[warp * kOfWarp + i] = seen;
    all = {seen.begin, seen.end, seen.begin, seen.end};
  }
  for (uint32_t bits = 16; bits > 0; bits >>= 1) {
    all.begin = min(all.begin, shuffle_xor(all.begin, bits));
    all.end = max(all.end, shuffle_xor(all.end, bits));
    all.all_begin = max(all.all_begin, shuffle_xor(all.all_begin, bits));
    all.all_end = min(all.all_end, shuffle_xor(all.all_end, bits));
  }
  if (lane_idx() == 0) ranges.warps[warp] = all;
}

// Behind that barrier: what some query of the block sees, also in `some`, for use behind the next one.
template <class T, int32_t kQueries, int32_t kWarps>
__device__ __forceinline__ Visible find_some(BlockRanges<T, kQueries, kWarps>& ranges) {
  Visible some;
  for (const SeenByWarp& seen : ranges.warps) {
    some.begin = min(some.begin, seen.begin);
    some.end = max(some.end, seen.end);
  }
  if (threadIdx.x == 0) ranges.some = some;
  return some;
}

// Products q.k of a tile become x of PrefillParams::unit.
template <class T, int32_t kColumns>
__device__ __forceinline__ void cap_logits(float (&s)[kColumns][4], float cap_scale) {
  [[maybe_unused]] constexpr int kUnroll = kUnrollTiles<T>;
#pragma unroll(kUnroll)
  for (int32_t n = 0; n < kColumns; ++n) {
#pragma unroll(kUnroll)
    for (int32_t e = 0; e < 4; ++e) s[n][e] = tanhf(s[n][e] * cap_scale);
  }
}

// -inf where row g + 8 h does not see the column's entry; `entry` is that of x[0][0]. (Addresses worked out by the caller, which
// has them in registers that this function would want twice.)
template <class T, int32_t kColumns>
__device__ __forceinline__ void hide_logits(float (&s)[kColumns][4], const Visible (&rows)[2],
                                            int32_t entry) {
  [[maybe_unused]] constexpr int kUnroll = kUnrollTiles<T>;
#pragma unroll(kUnroll)
  for (int32_t n = 0; n < kColumns; ++n) {
#pragma unroll(kUnroll)
    for (int32_t e = 0; e < 4; ++e) {
      const int32_t at = entry + n * 8 + e % 2;
      if (at < rows[e / 2].begin || at >= rows[e / 2].end) s[n][e] = kMinusInfinity;
    }
  }
}

// Rows g and g + 8 of a tile as the softmax goes on.
struct SoftmaxRows {
  float most[2] = {kMinusInfinity, kMinusInfinity};  // m
  float sum[2] = {};                                 // of this lane's columns
};

// m follows the maximum where that is higher by more than the slack: `base` is unit x m, `factor` what earlier sums are to be
// multiplied by, 1 to the bit where m stays. Whether some row's m rose.
template <class T, int32_t kColumns>
__device__ __forceinline__ bool raise_maximum(const float (&s)[kColumns][4], float unit, SoftmaxRows& rows,
                                              float (&base)[2], float (&factor)[2]) {
  [[maybe_unused]] constexpr int kUnroll = kUnrollTiles<T>;
  bool has_changed = false;
#pragma unroll(kUnroll)
  for (int32_t h = 0; h < 2; ++h) {
    float best = rows.most[h];
#pragma unroll(kUnroll)
    for (int32_t n = 0; n < kColumns; ++n) best = fmaxf(best, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
    best = fmaxf(best, shuffle_xor(best, 1));
    best = fmaxf(best, shuffle_xor(best, 2));
    const bool is_higher = (best - rows.most[h]) * unit > kSlack;
    const float before = rows.most[h];
    if (is_higher) rows.most[h] = best;
    // no finite logit yet: weights are exp(-inf - 0) = 0, and NaN stays NaN
    base[h] = rows.most[h] == kMinusInfinity ? 0.0f : rows.most[h] * unit;
    factor[h] = is_higher ? exp2_approx(fma_rn(before, unit, -base[h])) : 1.0f;
    has_changed = has_changed || is_higher;
  }
  return has_changed;
}

// Weights in place of the logits of columns [16 k, 16 k + 16).
template <class T, int32_t kColumns>
__device__ __forceinline__ void weigh_step(float (&s)[kColumns][4], int32_t k, float unit,
                                           const float (&base)[2], SoftmaxRows& rows) {
  [[maybe_unused]] constexpr int kUnroll = kUnrollTiles<T>;
#pragma unroll(kUnroll)
  for (int32_t e = 0; e < 8; ++e) {
    float& x = s[2 * k + e / 4][e % 4];
    x = exp2_approx(fma_rn(x, unit, -base[e % 4 / 2]));
    rows.sum[e % 4 / 2] += x;
  }
}

template <class T, int32_t kColumns>
__device__ __forceinline__ void scale_rows(float (&out)[kColumns][4], const float (&factor)[2]) {
  [[maybe_unused]] constexpr int kUnroll = kUnrollTiles<T>;
#pragma unroll(kUnroll)
  for (int32_t n = 0; n < kColumns; ++n) {
#pragma unroll(kUnroll)
    for (int32_t e = 0; e < 4; ++e) out[n][e] *= factor[e / 2];
  }
}

// out and lse of the tile of 16 queries that begins with query `first` of the block.
template <class T, int32_t kColumns>
__device__ __forceinline__ void store_rows(const PrefillParams<T>& p, const BlockWork& work, int32_t first,
                                           const float (&out)[kColumns][4], const SoftmaxRows& rows) {
  [[maybe_unused]] constexpr int kUnroll = kUnrollTiles<T>;
  const int32_t g = static_cast<int32_t>(lane_idx()) / 4, c = static_cast<int32_t>(lane_idx()) % 4 * 2;
#pragma unroll(kUnroll)
  for (int32_t h = 0; h < 2; ++h) {
    float total = rows.sum[h];
    total += shuffle_xor(total, 1);
    total += shuffle_xor(total, 2);
    const int32_t query = work.first + first + g + 8 * h;
    if (query >= work.num_queries) continue;
    const int64_t t = work.segment.row_begin + query / p.group;
    const int64_t head = int64_t{work.kv_head} * p.group + query % p.group;
    const bool is_empty = total == 0.0f;  // it sees nothing
    const float factor = is_empty ? 0.0f : 1.0f / total;
    std::byte* row = p.out + (t * p.out_stride + head * p.dim) * bytes_of_element(p.out_type);
#pragma unroll(kUnroll)
    for (int32_t n = 0; n < kColumns; ++n) {
      const int32_t d = n * 8 + c;
      if (d < p.dim) {
        store_two(row + int64_t{d} * bytes_of_element(p.out_type), p.out_type,
                  {is_empty ? 0.0f : out[n][2 * h] * factor, is_empty ? 0.0f : out[n][2 * h + 1] * factor});
      }
    }
    if (p.lse && c == 0) {
      p.lse[t * p.lse_stride + head] =
          is_empty ? kMinusInfinity : fma_rn(rows.most[h], p.unit, log2_approx(total)) * kLn2;
    }
  }
}

}  // namespace restkv::cuda
