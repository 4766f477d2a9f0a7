// Causal attention of prompt rows over a cached prefix in pages and this layer's rows in scratch, online softmax:
//   s_j = softcap(scale q.k_j), p_j = exp(s_j - m), out = sum_j p_j v_j / sum_j p_j, lse = m + log(sum_j p_j)
// A block owns 64 queries of one KV head: rows x the G heads of its group, packed, so that K and V are read once for the
// group; each of its 4 warps owns 16 of them. Tiles of 64 entries (fewer for long rows), aligned to the absolute entry index,
// run through a ring of two stages filled by cp.async; products are mma.sync m16n8k16 with f32 accumulators (T = float: the
// same fragments with exact products, for tests). A tile no query of a row sees leaves that row's state as it is, so the
// result does not depend on where the prompt was cut. A row that sees nothing gives zeros and lse = -inf. Entries outside of all
// ranges of a block are never read; a NaN in V of an entry that only some of the block's queries see may reach the others.
// Grid: (tile of queries, KV head), the tiles with most entries first. Bound: matrix products, 4*D flops for each visible pair.
// Shared memory at D = 128, 16 bits: 64 queries and 2 x (K + V) tiles of 272-byte rows, 85 KiB: 2 blocks an SM of sm_90, 1 of
// sm_80; D = 256: 99 KiB, all that sm_86 has.
// Occupancy: prefill_attention_kernel 128 x 2.
#include <algorithm>

#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

namespace restkv::cuda {
namespace {

constexpr int32_t kThreads = 128;
constexpr int32_t kQueries = 64;
constexpr int32_t kStages = 2;
static_assert(kQueries == kThreads / 32 * 16, "a warp owns 16 queries");

struct QueryTile {
  int32_t segment;
  int32_t first;  // query of the segment
};

template <class T>
struct PrefillParams {
  const AttentionSegment* segments;
  const QueryTile* tiles;    // [grid.x]
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
  int32_t slot_shift;
  int32_t group;
  int32_t dim;
  int32_t window;
  float scale;
  float softcap;
};

template <class T, int32_t kDim>
struct PrefillShared {
  T queries[kQueries * kRowElements<T, kDim>];
  union {
    T keys[kStages][kTileKeys<T, kDim> * kRowElements<T, kDim>];
    Visible seen[kQueries];  // of each query, until the first tile is on its way
  };
  T values[kStages][kTileKeys<T, kDim> * kRowElements<T, kDim>];
};
template <class T, int32_t kDim>
inline constexpr bool kFitsSm86 = sizeof(PrefillShared<T, kDim>) <= (99u << 10);

template <class T, int32_t kDim>
__global__ void __launch_bounds__(kThreads, 2)
    prefill_attention_kernel(const __grid_constant__ PrefillParams<T> p) {
  wait_for_previous();
  constexpr int32_t kKeys = kTileKeys<T, kDim>;
  [[maybe_unused]] constexpr int kUnroll = kUnrollTiles<T>;
  constexpr int32_t kRow = kRowElements<T, kDim>;
  auto& shared = *shared_memory<PrefillShared<T, kDim>>();
  static_assert(sizeof(shared) <= (163u << 10), "sm_80");
  static_assert(!kIsHalf<T> || kDim > 128 || sizeof(shared) <= (88u << 10), "2 blocks of sm_90");
  static_assert(!kIsHalf<T> || kFitsSm86<T, kDim>, "1 of sm_86");
  const QueryTile tile = p.tiles[blockIdx.x];
  const AttentionSegment& segment = p.segments[tile.segment];
  const auto kv_head = static_cast<int32_t>(blockIdx.y);
  const EntryRows<T> rows(segment, p.cache, p.slot_shift, kv_head, p.dim);
  const int32_t num_queries = segment.num_rows * p.group;

  load_queries<T, kDim, kQueries, kThreads>(p.q, p.q_type, p.q_stride, segment, kv_head, p.group, p.dim,
                                            tile.first, shared.queries);
  if (threadIdx.x < kQueries) {
    const int32_t query = tile.first + static_cast<int32_t>(threadIdx.x);
    Visible seen;
    if (query < num_queries) {
      seen = visible_entries(rows, p.positions[segment.row_begin + query / p.group], p.window);
    }
    shared.seen[threadIdx.x] = seen;
  }
  sync_threads();
  // Entries that some query sees, and those that all see.
  int32_t begin = INT32_MAX, end = 0, all_begin = 0, all_end = INT32_MAX;
  for (const Visible& seen : shared.seen) {
    begin = min(begin, seen.begin);
    end = max(end, seen.end);
    all_begin = max(all_begin, seen.begin);
    all_end = min(all_end, seen.end);
  }
  const int32_t first_tile = begin < end ? begin / kKeys : 0;
  const int32_t num_tiles = begin < end ? (end + kKeys - 1) / kKeys - first_tile : 0;

  const auto warp = static_cast<int32_t>(warp_idx());
  const int32_t g = static_cast<int32_t>(lane_idx()) / 4, c = static_cast<int32_t>(lane_idx()) % 4 * 2;
  const Visible seen[2] = {shared.seen[warp * 16 + g], shared.seen[warp * 16 + g + 8]};
  sync_threads();  // everybody knows what is seen, and the tiles may take its place
  // The queries of a warp stay in registers where there are enough of them.
  constexpr bool kHoldsQueries = kIsHalf<T> && kDim <= 128;
  [[maybe_unused]] MmaA<T> held[kHoldsQueries ? kDim / 16 : 1];
  if constexpr (kHoldsQueries) {
#pragma unroll(kUnroll)
    for (int32_t d = 0; d < kDim; d += 16) load_a(held[d / 16], shared.queries + warp * 16 * kRow + d, kRow);
  }
  float out[kDim / 8][4] = {};
  float most[2] = {kMinusInfinity, kMinusInfinity};
  float sum[2] = {0.0f, 0.0f};  // of this lane's columns

  if (num_tiles > 0) {
    copy_tile<T, kDim, kThreads>(rows, p.dim, first_tile * kKeys, begin, end, shared.keys[0],
                                 shared.values[0]);
  }
  cp_async_commit();
  for (int32_t i = 0; i < num_tiles; ++i) {
    const int32_t stage = i % kStages, first = (first_tile + i) * kKeys;
    cp_async_wait<0>();
    sync_threads();  // the tile is there for all, and the other stage is free
    if (i + 1 < num_tiles) {
      copy_tile<T, kDim, kThreads>(rows, p.dim, first + kKeys, begin, end, shared.keys[(i + 1) % kStages],
                                   shared.values[(i + 1) % kStages]);
    }
    cp_async_commit();

    float s[kKeys / 8][4] = {};
#pragma unroll(kUnroll)
    for (int32_t d = 0; d < kDim; d += 16) {
      MmaA<T> a;
      if constexpr (kHoldsQueries) {
        a = held[d / 16];
      } else {
        load_a(a, shared.queries + warp * 16 * kRow + d, kRow);
      }
#pragma unroll(kUnroll)
      for (int32_t n = 0; n < kKeys / 8; n += 2) {
        MmaB<T> b[2];
        load_b_pair(b, shared.keys[stage] + n * 8 * kRow + d, kRow);
        mma(s[n], a, b[0]);
        mma(s[n + 1], a, b[1]);
      }
    }
    const bool is_masked = first < all_begin || first + kKeys > all_end;
    float best[2] = {most[0], most[1]};
#pragma unroll(kUnroll)
    for (int32_t n = 0; n < kKeys / 8; ++n) {
#pragma unroll(kUnroll)
      for (int32_t e = 0; e < 4; ++e) {
        float& x = s[n][e];
        x = log2_logit(x, p.scale, p.softcap);
        const int32_t entry = first + n * 8 + c + e % 2;
        if (is_masked && (entry < seen[e / 2].begin || entry >= seen[e / 2].end)) x = kMinusInfinity;
        best[e / 2] = fmaxf(best[e / 2], x);
      }
    }
    float factor[2], base[2];
#pragma unroll(kUnroll)
    for (int32_t h = 0; h < 2; ++h) {
      best[h] = fmaxf(best[h], shuffle_xor(best[h], 1));
      best[h] = fmaxf(best[h], shuffle_xor(best[h], 2));
      // no finite logit yet: weights are exp(-inf - 0) = 0, and NaN stays NaN
      base[h] = best[h] == kMinusInfinity ? 0.0f : best[h];
      factor[h] = exp2_approx(most[h] - base[h]);
      most[h] = best[h];
      sum[h] *= factor[h];
    }
#pragma unroll(kUnroll)
    for (int32_t n = 0; n < kKeys / 8; ++n) {
#pragma unroll(kUnroll)
      for (int32_t e = 0; e < 4; ++e) {
        s[n][e] = exp2_approx(s[n][e] - base[e / 2]);
        sum[e / 2] += s[n][e];
      }
    }
#pragma unroll(kUnroll)
    for (int32_t n = 0; n < kDim / 8; ++n) {
#pragma unroll(kUnroll)
      for (int32_t e = 0; e < 4; ++e) out[n][e] *= factor[e / 2];
    }
#pragma unroll(kUnroll)
    for (int32_t k = 0; k < kKeys; k += 16) {
      MmaA<T> a;
      a_from_accumulators(a, s[k / 8], s[k / 8 + 1]);
#pragma unroll(kUnroll)
      for (int32_t n = 0; n < kDim / 8; n += 2) {
        MmaB<T> b[2];
        load_b_pair_trans(b, shared.values[stage] + k * kRow + n * 8, kRow);
        mma(out[n], a, b[0]);
        mma(out[n + 1], a, b[1]);
      }
    }
  }
  cp_async_wait<0>();

#pragma unroll(kUnroll)
  for (int32_t h = 0; h < 2; ++h) {
    sum[h] += shuffle_xor(sum[h], 1);
    sum[h] += shuffle_xor(sum[h], 2);
    const int32_t query = tile.first + warp * 16 + g + 8 * h;
    if (query >= num_queries) continue;
    const int64_t t = segment.row_begin + query / p.group;
    const int64_t head = int64_t{kv_head} * p.group + query % p.group;
    const bool is_empty = sum[h] == 0.0f;  // it sees nothing
    const float factor = is_empty ? 0.0f : 1.0f / sum[h];
    std::byte* row = p.out + (t * p.out_stride + head * p.dim) * bytes_of_element(p.out_type);
#pragma unroll(kUnroll)
    for (int32_t n = 0; n < kDim / 8; ++n) {
      const int32_t d = n * 8 + c;
      if (d < p.dim) {
        store_two(row + int64_t{d} * bytes_of_element(p.out_type), p.out_type,
                  {is_empty ? 0.0f : out[n][2 * h] * factor, is_empty ? 0.0f : out[n][2 * h + 1] * factor});
      }
    }
    if (p.lse && c == 0) {
      p.lse[t * p.lse_stride + head] = is_empty ? kMinusInfinity : (most[h] + log2_approx(sum[h])) * kLn2;
    }
  }
}

}  // namespace

void prefill_attention(Context& context, const PrefillAttentionArgs& args) {
  const AttentionShape& shape = args.shape;
  const int32_t group = shape.num_heads / shape.num_kv_heads;
  size_t num_tiles = 0;
  for (const PrefillSegment& segment : args.segments)
    num_tiles += blocks_of(segment.num_rows * group, kQueries);
  if (num_tiles == 0) return;
  const Staged<AttentionSegment> segments = context.stage<AttentionSegment>(args.segments.size());
  const Staged<QueryTile> tiles = context.stage<QueryTile>(num_tiles);
  DType dtype = DType::kF32;
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
    dtype = segment.k.dtype;
    const auto queries = static_cast<int32_t>(segment.num_rows) * group;
    for (int32_t first = 0; first < queries; first += kQueries)
      tiles.host[tile++] = {static_cast<int32_t>(i), first};
  }
  // Longest first: what the last row of a tile sees.
  const auto entries = [&](const QueryTile& t) {
    const PrefillSegment& segment = args.segments[static_cast<size_t>(t.segment)];
    const int64_t row = std::min<int64_t>(segment.num_rows, (t.first + kQueries + group - 1) / group) - 1;
    const int64_t prefix = segment.prefix.kv_len ? segment.prefix.kv_len[0] : 0;
    const int64_t position = args.positions[static_cast<size_t>(segment.row_begin + row)];
    const int64_t seen = prefix + position - segment.first_position + 1;
    return shape.window > 0 ? std::min<int64_t>(seen, shape.window) : seen;
  };
  std::stable_sort(tiles.host.begin(), tiles.host.end(),
                   [&](const QueryTile& a, const QueryTile& b) { return entries(a) > entries(b); });
  const int32_t* positions = context.upload(args.positions);

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
                                    .slot_shift = slot_shift(args.cache),
                                    .group = group,
                                    .dim = shape.head_dim,
                                    .window = shape.window,
                                    .scale = shape.scale,
                                    .softcap = shape.softcap};
      launch(prefill_attention_kernel<T, kDim>,
             {.x = static_cast<uint32_t>(num_tiles), .y = static_cast<uint32_t>(shape.num_kv_heads)},
             kThreads, sizeof(PrefillShared<T, kDim>), context.ready(), params);
    });
  });
}

int32_t prefill_shared_bytes(DType cache, int32_t head_dim) {
  int32_t bytes = 0;
  dispatch_float(cache, [&]<class T>() {
    dispatch_head_dim(head_dim, [&]<int32_t kDim>() { bytes = sizeof(PrefillShared<T, kDim>); });
  });
  return bytes;
}

}  // namespace restkv::cuda
