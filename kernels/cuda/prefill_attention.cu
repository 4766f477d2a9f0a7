// Causal attention of prompt rows over a cached prefix in pages and this layer's rows in scratch, online softmax:
//   s_j = softcap(scale q.k_j), p_j = exp(s_j - m), out = sum_j p_j v_j / sum_j p_j, lse = m + log(sum_j p_j)
// A block owns 128 queries of one KV head: rows x the G heads of its group, packed, so that K and V are read once for the
// group; each of its 4 warps owns two tiles of 16, so that what it reads of K and V in shared memory serves both. Blocks of 64
// queries, one tile a warp, where the accumulators of two take too many registers (D > 128, f32) or where blocks of 128 are
// fewer than the multiprocessors. Tiles of 64 entries (fewer for long rows), aligned to the absolute entry index, have a buffer
// for K and one for V, filled by cp.async: the values of a tile arrive during Q K^T, the keys of the next one during softmax and
// P V. Products are mma.sync m16n8k16 with f32 accumulators (T = float: the same fragments with exact products, for tests).
// Logits keep their units: the scale is part of the exponent's FMA. m follows a row's maximum only where that is higher by a
// factor of 2^8 in the weights, which f16 has room for; a warp without such a row has nothing to rescale. A tile no query of a row sees leaves that row's state as it is, and blocks of either size do the
// same for a row in the same order: the result does not depend on where the prompt was cut, nor on the size of blocks. A row
// that sees nothing gives zeros and lse = -inf. Entries outside of all ranges of a block are never read; a NaN in V of an entry
// that only some of a warp's queries see may reach the others.
// Grid: tile of queries x KV head, the tiles with most entries first. Bound: matrix products, 4*D flops for each visible pair;
// reads of shared memory come close behind (80 ldmatrix.x4 for 256 mma of a warp at D = 128).
// Shared memory at D = 128, 16 bits: 128 queries, 64 keys and 64 values in rows of 272 bytes, 69 KiB: 2 blocks an SM of sm_80
// and sm_90, 1 of sm_86 (99 KiB).
// Occupancy: prefill_attention_kernel 128 x 2.
#include <algorithm>

#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/prefill_plan.h"
#include "kernels/cuda/prefill_tiles.h"

namespace restkv::cuda {
namespace {

constexpr int32_t kThreads = 128;
constexpr int32_t kWarps = kThreads / 32;
template <int32_t kRowTiles>
inline constexpr int32_t kQueries = kWarps * 16 * kRowTiles;  // of a block
// Most tiles of 16 queries of a warp: its accumulators take kRowTiles * D / 2 registers of a thread.
template <class T, int32_t kDim>
inline constexpr int32_t kMaxRowTiles = kDim <= 128 && kIsHalf<T> ? 2 : 1;

template <class T, int32_t kDim, int32_t kRowTiles>
struct PrefillShared {
  T queries[kQueries<kRowTiles> * kRowElements<T, kDim>];
  T keys[kTileKeys<T, kDim> * kRowElements<T, kDim>];
  T values[kTileKeys<T, kDim> * kRowElements<T, kDim>];
  BlockRanges<T, kQueries<kRowTiles>, kWarps> ranges;
};

template <class T, int32_t kDim, int32_t kRowTiles>
__global__ void __launch_bounds__(kThreads, 2)
    prefill_attention_kernel(const __grid_constant__ PrefillParams<T> p) {
  wait_for_previous();
  using Tile = PaddedTile<T, kDim, kTileKeys<T, kDim>>;
  constexpr int32_t kKeys = Tile::kRows;
  constexpr int32_t kBlockQueries = kQueries<kRowTiles>;
  [[maybe_unused]] constexpr int kUnroll = kUnrollTiles<T>;
  constexpr int32_t kRow = kRowElements<T, kDim>;
  auto& shared = *shared_memory<PrefillShared<T, kDim, kRowTiles>>();
  static_assert(fits_multiprocessor(sizeof(shared), kIsHalf<T> ? 2 : 1), "sm_80");
  static_assert(!kIsHalf<T> || sizeof(shared) <= (99u << 10), "sm_86");
  auto& ranges = shared.ranges;
  const auto warp = static_cast<int32_t>(warp_idx());
  const int32_t g = static_cast<int32_t>(lane_idx()) / 4, c = static_cast<int32_t>(lane_idx()) % 4 * 2;
  const int32_t warp_query = warp * 16 * kRowTiles;  // its first, of the block

  find_ranges(p, ranges);
  clear_padding<Tile, kThreads>(p.dim, shared.keys);
  clear_padding<Tile, kThreads>(p.dim, shared.values);
  sync_threads();
  const Visible some = find_some(ranges);
  int32_t first = some.begin / kKeys * kKeys;  // entry of the tile
  if (first < some.end) copy_rows<false, Tile, kThreads>(ranges.rows, p.dim, first, some, shared.keys);
  {
    const BlockWork work(p);
    load_query_rows<PaddedTile<T, kDim, kBlockQueries>, kThreads>(p.q, p.q_type, p.has_copied_queries,
                                                                  p.q_stride, work.segment, work.kv_head,
                                                                  p.group, p.dim, work.first, shared.queries);
  }
  cp_async_commit();
  sync_threads();

  float out[kRowTiles][kDim / 8][4] = {};
  SoftmaxRows rows[kRowTiles];

  for (; first < ranges.some.end; first += kKeys) {
    cp_async_wait<0>();
    sync_threads();  // the keys are there for all, and nobody needs the values before these any more
    copy_rows<true, Tile, kThreads>(ranges.rows, p.dim, first, ranges.some, shared.values);
    cp_async_commit();
    const SeenByWarp& seen = ranges.warps[warp];
    const bool is_seen = first < seen.end && first + kKeys > seen.begin;
    float s[kRowTiles][kKeys / 8][4];
    if (is_seen) {
      multiply_keys<T, kDim, kRowTiles>(s, shared.queries + warp_query * kRow, shared.keys);
    }
    cp_async_wait<0>();
    sync_threads();  // the values are there for all, and nobody needs the keys any more
    if (first + kKeys < ranges.some.end) {
      copy_rows<false, Tile, kThreads>(ranges.rows, p.dim, first + kKeys, ranges.some, shared.keys);
    }
    cp_async_commit();
    if (!is_seen) continue;

    if (p.cap_scale > 0.0f) {
#pragma unroll(kUnroll)
      for (int32_t r = 0; r < kRowTiles; ++r) cap_logits<T>(s[r], p.cap_scale);
    }
    if (first < seen.all_begin || first + kKeys > seen.all_end) {
#pragma unroll(kUnroll)
      for (int32_t r = 0; r < kRowTiles; ++r) {
        const int32_t query = warp_query + r * 16 + g;
        hide_logits<T>(s[r], {ranges.seen[query], ranges.seen[query + 8]}, first + c);
      }
    }
    float factor[kRowTiles][2], base[kRowTiles][2];
    bool has_changed = false;
#pragma unroll(kUnroll)
    for (int32_t r = 0; r < kRowTiles; ++r) {
      const bool is_higher = raise_maximum<T>(s[r], p.unit, rows[r], base[r], factor[r]);
      has_changed = has_changed || is_higher;
    }
    if (any(has_changed)) {
#pragma unroll(kUnroll)
      for (int32_t r = 0; r < kRowTiles; ++r) {
        rows[r].sum[0] *= factor[r][0];
        rows[r].sum[1] *= factor[r][1];
        scale_rows<T>(out[r], factor[r]);
      }
    }
    multiply_values<T, kDim, kRowTiles>(out, shared.values, [&](MmaA<T>(&a)[kRowTiles], int32_t k) {
#pragma unroll(kUnroll)
      for (int32_t r = 0; r < kRowTiles; ++r) {
        weigh_step<T>(s[r], k, p.unit, base[r], rows[r]);
        a_from_accumulators(a[r], s[r][2 * k], s[r][2 * k + 1]);
      }
    });
  }
  cp_async_wait<0>();

  const BlockWork work(p);
#pragma unroll(kUnroll)
  for (int32_t r = 0; r < kRowTiles; ++r) store_rows(p, work, warp_query + r * 16, out[r], rows[r]);
}

// Blocks of so many tiles of 16 queries a warp, as many as `run` gets along with.
template <class T, int32_t kDim, class F>
void dispatch_row_tiles(int32_t row_tiles, F&& run) {
  if constexpr (kMaxRowTiles<T, kDim> == 2) {
    if (row_tiles == 2) return run.template operator()<2>();
  }
  run.template operator()<1>();
}

// Large blocks read shared memory half as often; small ones where there are too few large ones for the card.
int32_t choose_row_tiles(const Context& context, const PrefillAttentionArgs& args, DType dtype) {
  if (dtype == DType::kF32 || args.shape.head_dim > 128) return 1;
  const int32_t group = args.shape.num_heads / args.shape.num_kv_heads;
  int64_t blocks = 0;
  for (const PrefillSegment& segment : args.segments) {
    blocks += blocks_of(segment.num_rows * group, kQueries<2>) * int64_t{args.shape.num_kv_heads};
  }
  return blocks >= context.limits().num_multiprocessors ? 2 : 1;
}

}  // namespace

PrefillPlan plan_prefill(Context& context, const PrefillAttentionArgs& args, int32_t block_queries) {
  const AttentionShape& shape = args.shape;
  const int32_t group = shape.num_heads / shape.num_kv_heads;
  size_t num_tiles = 0;
  for (const PrefillSegment& segment : args.segments)
    num_tiles += blocks_of(segment.num_rows * group, block_queries);
  if (num_tiles == 0) return {};
  const Staged<AttentionSegment> segments = context.stage<AttentionSegment>(args.segments.size());
  const Staged<QueryTile> tiles = context.stage<QueryTile>(num_tiles);
  size_t tile = 0;
  for (size_t i = 0; i < args.segments.size(); ++i) {
    const PrefillSegment& segment = args.segments[i];
    AttentionSegment& view = segments.host[i];
    view = {};
    if (segment.prefix.kv_len) {
      view.pages = context.page_table(segment.prefix, shape.num_kv_heads);
      view.kv_len = context.upload(segment.prefix.kv_len, shape.num_kv_heads);
      view.stride = segment.prefix.stride;
    }
    view.k = segment.k.data;
    view.v = segment.v.data;
    view.k_stride = segment.k.stride;
    view.v_stride = segment.v.stride;
    view.row_begin = segment.row_begin;
    view.num_rows = static_cast<int32_t>(segment.num_rows);
    view.num_kv = static_cast<int32_t>(segment.k.rows);
    view.first_position = segment.first_position;
    const auto queries = static_cast<int32_t>(segment.num_rows) * group;
    for (int32_t first = 0; first < queries; first += block_queries)
      tiles.host[tile++] = {static_cast<int32_t>(i), first};
  }
  // Longest first: what the last row of a tile sees.
  const auto entries = [&](const QueryTile& t) {
    const PrefillSegment& segment = args.segments[static_cast<size_t>(t.segment)];
    const int64_t row =
        std::min<int64_t>(segment.num_rows, (t.first + block_queries + group - 1) / group) - 1;
    const int64_t prefix = segment.prefix.kv_len ? segment.prefix.kv_len[0] : 0;
    const int64_t position = args.positions[static_cast<size_t>(segment.row_begin + row)];
    const int64_t seen = prefix + position - segment.first_position + 1;
    return shape.window > 0 ? std::min<int64_t>(seen, shape.window) : seen;
  };
  std::stable_sort(tiles.host.begin(), tiles.host.end(),
                   [&](const QueryTile& a, const QueryTile& b) { return entries(a) > entries(b); });
  return {.segments = segments.device,
          .tiles = tiles.device,
          .positions = context.upload(args.positions),
          .num_tiles = static_cast<uint32_t>(num_tiles)};
}

void prefill_attention(Context& context, const PrefillAttentionArgs& args) {
  const AttentionShape& shape = args.shape;
  CHECK(shape.scale > 0.0f) << "scale " << shape.scale;
  if (args.segments.empty()) return;
  const DType dtype = args.segments[0].k.dtype;
  if (dtype != DType::kF32 && context.limits().has_wgmma) return prefill_wgmma(context, args);
  const int32_t row_tiles = choose_row_tiles(context, args, dtype);
  const PrefillPlan plan = plan_prefill(context, args, row_tiles == 2 ? kQueries<2> : kQueries<1>);
  if (plan.num_tiles == 0) return;
  dispatch_float(dtype, [&]<class T>() {
    dispatch_head_dim(shape.head_dim, [&]<int32_t kDim>() {
      dispatch_row_tiles<T, kDim>(row_tiles, [&]<int32_t kRowTiles>() {
        launch(prefill_attention_kernel<T, kDim, kRowTiles>,
               {.x = plan.num_tiles * static_cast<uint32_t>(shape.num_kv_heads)}, kThreads,
               sizeof(PrefillShared<T, kDim, kRowTiles>), context.ready(), prefill_params<T>(args, plan));
      });
    });
  });
}

int32_t prefill_shared_bytes(DType cache, int32_t head_dim, const DeviceLimits& limits) {
  if (cache != DType::kF32 && limits.has_wgmma) return prefill_wgmma_shared_bytes(head_dim);
  int32_t bytes = 0;
  dispatch_float(cache, [&]<class T>() {
    dispatch_head_dim(head_dim,
                      [&]<int32_t kDim>() { bytes = sizeof(PrefillShared<T, kDim, kMaxRowTiles<T, kDim>>); });
  });
  return bytes;
}

}  // namespace restkv::cuda
