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

// By how much a row's maximum may exceed its m, in units of log2.
constexpr float kSlack = 8.0f;

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

template <class T, int32_t kDim, int32_t kRowTiles>
struct PrefillShared {
  T queries[kQueries<kRowTiles> * kRowElements<T, kDim>];
  T keys[kTileKeys<T, kDim> * kRowElements<T, kDim>];
  T values[kTileKeys<T, kDim> * kRowElements<T, kDim>];
  Visible seen[kQueries<kRowTiles>];  // of each query
  SeenByWarp warps[kWarps];
  // Here, where they take no registers:
  Visible some;  // what some query of the block sees
  EntryRows<T> rows;
};

template <class T, int32_t kDim, int32_t kRowTiles>
__global__ void __launch_bounds__(kThreads, 2)
    prefill_attention_kernel(const __grid_constant__ PrefillParams<T> p) {
  wait_for_previous();
  constexpr int32_t kKeys = kTileKeys<T, kDim>;
  constexpr int32_t kBlockQueries = kQueries<kRowTiles>;
  [[maybe_unused]] constexpr int kUnroll = kUnrollTiles<T>;
  constexpr int32_t kRow = kRowElements<T, kDim>;
  auto& shared = *shared_memory<PrefillShared<T, kDim, kRowTiles>>();
  static_assert(fits_multiprocessor(sizeof(shared), kIsHalf<T> ? 2 : 1), "sm_80");
  static_assert(!kIsHalf<T> || sizeof(shared) <= (99u << 10), "sm_86");
  const auto warp = static_cast<int32_t>(warp_idx());
  const int32_t g = static_cast<int32_t>(lane_idx()) / 4, c = static_cast<int32_t>(lane_idx()) % 4 * 2;
  const int32_t warp_query = warp * 16 * kRowTiles;  // its first, of the block

  {
    const BlockWork work(p);
    const EntryRows<T> rows(work.segment, p.cache, p.slot_shift, work.kv_head, p.dim);
    if (threadIdx.x == 0) shared.rows = rows;
    SeenByWarp all = {INT32_MAX, 0, 0, INT32_MAX};
    for (int32_t i = static_cast<int32_t>(lane_idx()); i < 16 * kRowTiles; i += 32) {
      const int32_t query = work.first + warp_query + i;
      Visible seen;
      if (query < work.num_queries) {
        seen = visible_entries(rows, p.positions[work.segment.row_begin + query / p.group], p.window);
      }
      shared.seen[warp_query + i] = seen;
      all = {seen.begin, seen.end, seen.begin, seen.end};
    }
    for (uint32_t bits = 16; bits > 0; bits >>= 1) {
      all.begin = min(all.begin, shuffle_xor(all.begin, bits));
      all.end = max(all.end, shuffle_xor(all.end, bits));
      all.all_begin = max(all.all_begin, shuffle_xor(all.all_begin, bits));
      all.all_end = min(all.all_end, shuffle_xor(all.all_end, bits));
    }
    if (lane_idx() == 0) shared.warps[warp] = all;
  }
  clear_padding<T, kDim, kKeys, kThreads>(p.dim, shared.keys);
  clear_padding<T, kDim, kKeys, kThreads>(p.dim, shared.values);
  sync_threads();
  Visible some;
  for (const SeenByWarp& seen : shared.warps) {
    some.begin = min(some.begin, seen.begin);
    some.end = max(some.end, seen.end);
  }
  if (threadIdx.x == 0) shared.some = some;
  int32_t first = some.begin / kKeys * kKeys;  // entry of the tile
  if (first < some.end) copy_rows<false, T, kDim, kThreads>(shared.rows, p.dim, first, some, shared.keys);
  {
    const BlockWork work(p);
    load_query_rows<T, kDim, kBlockQueries, kThreads>(p.q, p.q_type, p.has_copied_queries, p.q_stride,
                                                      work.segment, work.kv_head, p.group, p.dim, work.first,
                                                      shared.queries);
  }
  cp_async_commit();
  sync_threads();

  float out[kRowTiles][kDim / 8][4] = {};
  float most[kRowTiles][2], sum[kRowTiles][2] = {};  // m of rows g and g + 8; sums of this lane's columns
#pragma unroll(kUnroll)
  for (int32_t r = 0; r < kRowTiles; ++r) most[r][0] = most[r][1] = kMinusInfinity;

  for (; first < shared.some.end; first += kKeys) {
    cp_async_wait<0>();
    sync_threads();  // the keys are there for all, and nobody needs the values before these any more
    copy_rows<true, T, kDim, kThreads>(shared.rows, p.dim, first, shared.some, shared.values);
    cp_async_commit();
    const SeenByWarp& seen = shared.warps[warp];
    const bool is_seen = first < seen.end && first + kKeys > seen.begin;
    float s[kRowTiles][kKeys / 8][4];
    if (is_seen) {
      multiply_keys<T, kDim, kRowTiles>(s, shared.queries + warp_query * kRow, shared.keys);
    }
    cp_async_wait<0>();
    sync_threads();  // the values are there for all, and nobody needs the keys any more
    if (first + kKeys < shared.some.end) {
      copy_rows<false, T, kDim, kThreads>(shared.rows, p.dim, first + kKeys, shared.some, shared.keys);
    }
    cp_async_commit();
    if (!is_seen) continue;

    if (p.cap_scale > 0.0f) {
#pragma unroll(kUnroll)
      for (int32_t r = 0; r < kRowTiles; ++r) {
#pragma unroll(kUnroll)
        for (int32_t n = 0; n < kKeys / 8; ++n) {
#pragma unroll(kUnroll)
          for (int32_t e = 0; e < 4; ++e) s[r][n][e] = tanhf(s[r][n][e] * p.cap_scale);
        }
      }
    }
    if (first < seen.all_begin || first + kKeys > seen.all_end) {
#pragma unroll(kUnroll)
      for (int32_t r = 0; r < kRowTiles; ++r) {
        const Visible rows[2] = {shared.seen[warp_query + r * 16 + g],
                                 shared.seen[warp_query + r * 16 + g + 8]};
#pragma unroll(kUnroll)
        for (int32_t n = 0; n < kKeys / 8; ++n) {
#pragma unroll(kUnroll)
          for (int32_t e = 0; e < 4; ++e) {
            const int32_t entry = first + n * 8 + c + e % 2;
            if (entry < rows[e / 2].begin || entry >= rows[e / 2].end) s[r][n][e] = kMinusInfinity;
          }
        }
      }
    }
    // A row's factor is 1, to the bit, where its maximum has not risen by more than the slack.
    float factor[kRowTiles][2], base[kRowTiles][2];
    bool has_changed = false;
#pragma unroll(kUnroll)
    for (int32_t r = 0; r < kRowTiles; ++r) {
#pragma unroll(kUnroll)
      for (int32_t h = 0; h < 2; ++h) {
        float best = most[r][h];
#pragma unroll(kUnroll)
        for (int32_t n = 0; n < kKeys / 8; ++n) best = fmaxf(best, fmaxf(s[r][n][2 * h], s[r][n][2 * h + 1]));
        best = fmaxf(best, shuffle_xor(best, 1));
        best = fmaxf(best, shuffle_xor(best, 2));
        const bool is_higher = (best - most[r][h]) * p.unit > kSlack;
        const float before = most[r][h];
        if (is_higher) most[r][h] = best;
        // no finite logit yet: weights are exp(-inf - 0) = 0, and NaN stays NaN
        base[r][h] = most[r][h] == kMinusInfinity ? 0.0f : most[r][h] * p.unit;
        factor[r][h] = is_higher ? exp2_approx(fma_rn(before, p.unit, -base[r][h])) : 1.0f;
        has_changed = has_changed || is_higher;
      }
    }
    if (any(has_changed)) {
#pragma unroll(kUnroll)
      for (int32_t r = 0; r < kRowTiles; ++r) {
        sum[r][0] *= factor[r][0];
        sum[r][1] *= factor[r][1];
#pragma unroll(kUnroll)
        for (int32_t n = 0; n < kDim / 8; ++n) {
#pragma unroll(kUnroll)
          for (int32_t e = 0; e < 4; ++e) out[r][n][e] *= factor[r][e / 2];
        }
      }
    }
    multiply_values<T, kDim, kRowTiles>(out, shared.values, [&](MmaA<T>(&a)[kRowTiles], int32_t k) {
#pragma unroll(kUnroll)
      for (int32_t r = 0; r < kRowTiles; ++r) {
#pragma unroll(kUnroll)
        for (int32_t e = 0; e < 8; ++e) {
          float& x = s[r][2 * k + e / 4][e % 4];
          x = exp2_approx(fma_rn(x, p.unit, -base[r][e % 4 / 2]));
          sum[r][e % 4 / 2] += x;
        }
        a_from_accumulators(a[r], s[r][2 * k], s[r][2 * k + 1]);
      }
    });
  }
  cp_async_wait<0>();

  const BlockWork work(p);
#pragma unroll(kUnroll)
  for (int32_t r = 0; r < kRowTiles; ++r) {
#pragma unroll(kUnroll)
    for (int32_t h = 0; h < 2; ++h) {
      float total = sum[r][h];
      total += shuffle_xor(total, 1);
      total += shuffle_xor(total, 2);
      const int32_t query = work.first + warp_query + r * 16 + g + 8 * h;
      if (query >= work.num_queries) continue;
      const int64_t t = work.segment.row_begin + query / p.group;
      const int64_t head = int64_t{work.kv_head} * p.group + query % p.group;
      const bool is_empty = total == 0.0f;  // it sees nothing
      const float factor = is_empty ? 0.0f : 1.0f / total;
      std::byte* row = p.out + (t * p.out_stride + head * p.dim) * bytes_of_element(p.out_type);
#pragma unroll(kUnroll)
      for (int32_t n = 0; n < kDim / 8; ++n) {
        const int32_t d = n * 8 + c;
        if (d < p.dim) {
          store_two(
              row + int64_t{d} * bytes_of_element(p.out_type), p.out_type,
              {is_empty ? 0.0f : out[r][n][2 * h] * factor, is_empty ? 0.0f : out[r][n][2 * h + 1] * factor});
        }
      }
      if (p.lse && c == 0) {
        p.lse[t * p.lse_stride + head] =
            is_empty ? kMinusInfinity : fma_rn(most[r][h], p.unit, log2_approx(total)) * kLn2;
      }
    }
  }
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

void prefill_attention(Context& context, const PrefillAttentionArgs& args) {
  const AttentionShape& shape = args.shape;
  const int32_t group = shape.num_heads / shape.num_kv_heads;
  CHECK(shape.scale > 0.0f) << "scale " << shape.scale;
  if (args.segments.empty()) return;
  const DType dtype = args.segments[0].k.dtype;
  const int32_t row_tiles = choose_row_tiles(context, args, dtype);
  const int32_t block_queries = row_tiles == 2 ? kQueries<2> : kQueries<1>;
  size_t num_tiles = 0;
  for (const PrefillSegment& segment : args.segments)
    num_tiles += blocks_of(segment.num_rows * group, block_queries);
  if (num_tiles == 0) return;
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
  const int32_t* positions = context.upload(args.positions);
  const bool is_capped = shape.softcap > 0.0f;
  const bool has_copied_queries = args.q.dtype == dtype &&
                                  reinterpret_cast<uintptr_t>(args.q.data) % 16 == 0 &&
                                  args.q.stride * dtype_info(dtype).block_bytes % 16 == 0;

  dispatch_float(dtype, [&]<class T>() {
    dispatch_head_dim(shape.head_dim, [&]<int32_t kDim>() {
      const PrefillParams<T> params{.segments = segments.device,
                                    .tiles = tiles.device,
                                    .positions = positions,
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
                                    .group = group,
                                    .dim = shape.head_dim,
                                    .window = shape.window,
                                    .unit = (is_capped ? shape.softcap : shape.scale) * kLog2e,
                                    .cap_scale = is_capped ? shape.scale / shape.softcap : 0.0f};
      dispatch_row_tiles<T, kDim>(row_tiles, [&]<int32_t kRowTiles>() {
        launch(prefill_attention_kernel<T, kDim, kRowTiles>,
               {.x = static_cast<uint32_t>(num_tiles) * static_cast<uint32_t>(shape.num_kv_heads)}, kThreads,
               sizeof(PrefillShared<T, kDim, kRowTiles>), context.ready(), params);
      });
    });
  });
}

int32_t prefill_shared_bytes(DType cache, int32_t head_dim) {
  int32_t bytes = 0;
  dispatch_float(cache, [&]<class T>() {
    dispatch_head_dim(head_dim,
                      [&]<int32_t kDim>() { bytes = sizeof(PrefillShared<T, kDim, kMaxRowTiles<T, kDim>>); });
  });
  return bytes;
}

}  // namespace restkv::cuda
