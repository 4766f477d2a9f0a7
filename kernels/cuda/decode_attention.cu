// Attention of decode rows over their own pages, split over the entries and merged (flash decoding):
//   s_j = softcap(scale q.k_j), p_j = exp(s_j - m), out = sum_j p_j v_j / sum_j p_j
// A block owns up to 32 queries of one KV head (rows x the G heads of the group, packed) and one span of its entries. Keys are
// the M side of mma.sync m16n8k16 and queries the N side, so 4 heads of a group fill half of a tile's 8 columns instead of a
// quarter of 16 rows:
//   S [entries, queries] = K Q^T, each warp 16 entries  ->  softmax over shared memory, each warp every 4th query
//   O [D, queries] += V^T P^T, each warp a quarter of D
// Tiles of K and V run through a ring of three stages filled by cp.async. Lengths and positions come from the paged view; a
// row of several in one sequence sees the entries up to its own position. A row that sees nothing gives zeros.
// Grid: (unit, split); spans are whole tiles at fixed places of the entry index, as many as fill the card: planned on the host
// from the longest head, the same for all layers of a step; `deterministic` makes each span 256 entries, so that neighbours
// change no bit. One split writes `out`, several leave (m, l, acc) for
// decode_merge_kernel. Bound: bandwidth, K and V once. Shared memory at D = 128, 16 bits: 3 x 34 KiB of tiles, 8.5 KiB of
// queries, 13 KiB of scores and weights, 124 KiB: 1 block of sm_80 with 68 KiB in flight; two stages (90 KiB) on smaller cards.
// Occupancy: decode_attention_kernel 128 x 2, decode_merge_kernel 128 x 16.
#include <algorithm>

#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

namespace restkv::cuda {
namespace {

constexpr int32_t kThreads = 128;
constexpr int32_t kWarps = kThreads / 32;
constexpr int32_t kQueries = 32;
constexpr int32_t kMaxStages = 3;
constexpr int32_t kMinSplit = 64, kFixedSplit = 256;  // entries
constexpr int32_t kMergeThreads = 128;
static_assert(kMinSplit % 64 == 0 && kFixedSplit % 64 == 0, "whole tiles");

struct QueryTile {
  int32_t segment;
  int32_t first;  // query of the segment
};

template <class T>
struct DecodeParams {
  const AttentionSegment* segments;
  const QueryTile* tiles;    // [units / K]
  const int32_t* positions;  // [T]
  const std::byte* q;        // [T, q_stride]
  std::byte* out;            // [T, out_stride]
  float* partial;            // [units, splits, partial_rows, dim + 2]: acc, m, l; null: one split
  PagedView<T> cache;
  int64_t q_stride;
  int64_t out_stride;
  DType q_type;
  DType out_type;
  int32_t num_kv_heads;
  int32_t num_splits;
  int32_t split_entries;
  int32_t partial_rows;  // most queries of a tile
  int32_t stages;
  int32_t slot_shift;
  int32_t group;
  int32_t dim;
  int32_t window;
  float scale;
  float softcap;
};

template <class T, int32_t kDim>
struct DecodeShared {
  static constexpr int32_t kKeys = kTileKeys<T, kDim>;
  static constexpr int32_t kRow = kRowElements<T, kDim>;
  T queries[kQueries * kRow];
  T weights[kQueries * kRowElements<T, kKeys>];  // [query, entry]
  float logits[kQueries * (kKeys + 4)];          // [query, entry]
  Visible seen[kQueries];
  float most[kQueries];  // running maximum, in units of log2
  float sum[kQueries];
  float factor[kQueries];     // exp2(old maximum - new)
  T tiles[2 * kKeys * kRow];  // K and V of a stage; the launch made `stages` of them
};

template <class T, int32_t kDim>
__global__ void __launch_bounds__(kThreads, 2)
    decode_attention_kernel(const __grid_constant__ DecodeParams<T> p) {
  using Shared = DecodeShared<T, kDim>;
  constexpr int32_t kKeys = Shared::kKeys;
  [[maybe_unused]] constexpr int kUnroll = kUnrollTiles<T>;
  constexpr int32_t kRow = Shared::kRow;
  constexpr int32_t kLogitRow = kKeys + 4;
  constexpr int32_t kWeightRow = kRowElements<T, kKeys>;
  constexpr int32_t kDimTiles = kDim / 16;
  constexpr int32_t kOwnTiles = (kDimTiles + kWarps - 1) / kWarps;  // 16 of D each, of a warp
  auto& shared = *shared_memory<Shared>();
  static_assert(sizeof(Shared) + sizeof(Shared::tiles) <= (163u << 10), "two stages on sm_80");
  static_assert(!kIsHalf<T> || sizeof(Shared) + sizeof(Shared::tiles) <= (99u << 10), "on sm_86");
  static_assert(!kIsHalf<T> || kDim > 128 || sizeof(Shared) + 2 * sizeof(Shared::tiles) <= (163u << 10),
                "three stages on sm_80");
  const auto unit = static_cast<int32_t>(blockIdx.x);
  const auto split = static_cast<int32_t>(blockIdx.y);
  const QueryTile tile = p.tiles[unit / p.num_kv_heads];
  const int32_t kv_head = unit % p.num_kv_heads;
  const AttentionSegment& segment = p.segments[tile.segment];
  const EntryRows<T> rows(segment, p.cache, p.slot_shift, kv_head, p.dim);
  const int32_t num_queries = min(segment.num_rows * p.group - tile.first, kQueries);
  const int32_t num_columns = (num_queries + 7) / 8;  // tiles of 8 queries
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const auto warp = static_cast<int32_t>(warp_idx());
  const auto lane = static_cast<int32_t>(lane_idx());

  load_queries<T, kDim, kQueries, kThreads>(p.q, p.q_type, p.q_stride, segment, kv_head, p.group, p.dim,
                                            tile.first, shared.queries);
  if (thread < kQueries) {
    Visible seen;
    if (thread < num_queries) {
      seen =
          visible_entries(rows, p.positions[segment.row_begin + (tile.first + thread) / p.group], p.window);
    }
    shared.seen[thread] = seen;
    shared.most[thread] = kMinusInfinity;
    shared.sum[thread] = 0.0f;
  }
  // The weights of entries and queries that no warp writes below stay zero.
  for (int32_t i = thread; i < kQueries * kWeightRow; i += kThreads) shared.weights[i] = from_f32<T>(0.0f);
  sync_threads();
  int32_t begin = INT32_MAX, end = 0;
  for (const Visible& seen : shared.seen) {
    begin = min(begin, seen.begin);
    end = max(end, seen.end);
  }
  begin = max(begin, split * p.split_entries);
  end = min(end, split * p.split_entries + p.split_entries);
  const int32_t first_tile = begin < end ? begin / kKeys : 0;
  const int32_t num_tiles = begin < end ? (end + kKeys - 1) / kKeys - first_tile : 0;
  const auto copy = [&](int32_t i) {
    if (i < num_tiles) {
      T* stage = shared.tiles + i % p.stages * 2 * kKeys * kRow;
      copy_tile<T, kDim, kThreads>(rows, p.dim, (first_tile + i) * kKeys, begin, end, stage,
                                   stage + kKeys * kRow);
    }
    cp_async_commit();
  };

  float out[kOwnTiles][kQueries / 8][4] = {};  // [16 of D, 8 queries]
  for (int32_t i = 0; i + 1 < p.stages; ++i) copy(i);
  for (int32_t i = 0; i < num_tiles; ++i) {
    const int32_t first = (first_tile + i) * kKeys;
    if (p.stages == 3) {
      cp_async_wait<1>();
    } else {
      cp_async_wait<0>();
    }
    sync_threads();  // the tile is there for all; its predecessor's stage, logits and weights are free
    copy(i + p.stages - 1);
    const T* keys = shared.tiles + i % p.stages * 2 * kKeys * kRow;
    const T* values = keys + kKeys * kRow;

    if (warp * 16 < kKeys) {
      float s[kQueries / 8][4] = {};
      for (int32_t d = 0; d < kDim; d += 16) {
        MmaA<T> a;
        load_a(a, keys + warp * 16 * kRow + d, kRow);
#pragma unroll(kUnroll)
        for (int32_t n = 0; n < kQueries / 8; ++n) {
          if (n >= num_columns) continue;
          MmaB<T> b;
          load_b(b, shared.queries + n * 8 * kRow + d, kRow);
          mma(s[n], a, b);
        }
      }
#pragma unroll(kUnroll)
      for (int32_t n = 0; n < kQueries / 8; ++n) {
#pragma unroll(kUnroll)
        for (int32_t e = 0; e < 4; ++e) {
          const int32_t entry = warp * 16 + lane / 4 + e / 2 * 8, query = n * 8 + lane % 4 * 2 + e % 2;
          if (n < num_columns) shared.logits[query * kLogitRow + entry] = s[n][e];
        }
      }
    }
    sync_threads();

    for (int32_t query = warp; query < num_queries; query += kWarps) {
      const Visible seen = shared.seen[query];
      constexpr int32_t kOwn = (kKeys + 31) / 32;
      float x[kOwn];
      float best = shared.most[query];
#pragma unroll(kUnroll)
      for (int32_t j = 0; j < kOwn; ++j) {
        const int32_t entry = j * 32 + lane;
        x[j] = kMinusInfinity;
        if (entry < kKeys && first + entry >= seen.begin && first + entry < min(seen.end, end) &&
            first + entry >= begin) {
          x[j] = log2_logit(shared.logits[query * kLogitRow + entry], p.scale, p.softcap);
        }
        best = fmaxf(best, x[j]);
      }
      best = warp_max(best);
      // no finite logit yet: weights are exp(-inf - 0) = 0, and NaN stays NaN
      const float base = best == kMinusInfinity ? 0.0f : best;
      float sum = 0.0f;
#pragma unroll(kUnroll)
      for (int32_t j = 0; j < kOwn; ++j) {
        const int32_t entry = j * 32 + lane;
        x[j] = exp2_approx(x[j] - base);
        sum += x[j];
        if (entry < kKeys) shared.weights[query * kWeightRow + entry] = from_f32<T>(x[j]);
      }
      sum = warp_sum(sum);
      const float factor = exp2_approx(shared.most[query] - base);
      sync_warp();
      if (lane == 0) {
        shared.most[query] = best;
        shared.sum[query] = shared.sum[query] * factor + sum;
        shared.factor[query] = factor;
      }
    }
    sync_threads();

#pragma unroll(kUnroll)
    for (int32_t n = 0; n < kQueries / 8; ++n) {
      if (n >= num_columns) continue;
#pragma unroll(kUnroll)
      for (int32_t e = 0; e < 2; ++e) {
        const int32_t query = n * 8 + lane % 4 * 2 + e;
        const float factor = query < num_queries ? shared.factor[query] : 0.0f;
#pragma unroll(kUnroll)
        for (int32_t m = 0; m < kOwnTiles; ++m) {
          out[m][n][e] *= factor;
          out[m][n][e + 2] *= factor;
        }
      }
    }
#pragma unroll(kUnroll)
    for (int32_t m = 0; m < kOwnTiles; ++m) {
      const int32_t d = (warp + m * kWarps) * 16;
      if (d >= kDim) continue;
#pragma unroll(kUnroll)
      for (int32_t k = 0; k < kKeys; k += 16) {
        MmaA<T> a;
        load_a_trans(a, values + k * kRow + d, kRow);
#pragma unroll(kUnroll)
        for (int32_t n = 0; n < kQueries / 8; ++n) {
          if (n >= num_columns) continue;
          MmaB<T> b;
          load_b(b, shared.weights + n * 8 * kWeightRow + k, kWeightRow);
          mma(out[m][n], a, b);
        }
      }
    }
  }
  cp_async_wait<0>();
  sync_threads();

  float* partial =
      p.partial ? p.partial + (int64_t{unit} * p.num_splits + split) * p.partial_rows * (p.dim + 2) : nullptr;
#pragma unroll(kUnroll)
  for (int32_t n = 0; n < kQueries / 8; ++n) {
#pragma unroll(kUnroll)
    for (int32_t e = 0; e < 4; ++e) {
      const int32_t query = n * 8 + lane % 4 * 2 + e % 2;
      if (query >= num_queries) continue;
      const float sum = shared.sum[query];
      const int64_t t = segment.row_begin + (tile.first + query) / p.group;
      const int64_t head = int64_t{kv_head} * p.group + (tile.first + query) % p.group;
#pragma unroll(kUnroll)
      for (int32_t m = 0; m < kOwnTiles; ++m) {
        const int32_t d = (warp + m * kWarps) * 16 + lane / 4 + e / 2 * 8;
        if (d >= p.dim) continue;
        if (partial) {
          partial[query * (p.dim + 2) + d] = out[m][n][e];
        } else {
          store_one(p.out + (t * p.out_stride + head * p.dim + d) * bytes_of_element(p.out_type), p.out_type,
                    sum == 0.0f ? 0.0f : out[m][n][e] / sum);
        }
      }
    }
  }
  if (partial && thread < num_queries) {
    partial[thread * (p.dim + 2) + p.dim] = shared.most[thread];
    partial[thread * (p.dim + 2) + p.dim + 1] = shared.sum[thread];
  }
}

// out = sum_s exp2(m_s - m) acc_s / sum_s exp2(m_s - m) l_s, splits in rising order; a split without entries changes nothing.
// Grid: (unit, query of a tile); a thread owns columns of D.
template <class T>
__global__ void __launch_bounds__(kMergeThreads, 16)
    decode_merge_kernel(const __grid_constant__ DecodeParams<T> p) {
  const auto unit = static_cast<int32_t>(blockIdx.x);
  const auto query = static_cast<int32_t>(blockIdx.y);
  const QueryTile tile = p.tiles[unit / p.num_kv_heads];
  const AttentionSegment& segment = p.segments[tile.segment];
  if (tile.first + query >= segment.num_rows * p.group) return;
  const int64_t stride = int64_t{p.partial_rows} * (p.dim + 2);
  const float* partial = p.partial + int64_t{unit} * p.num_splits * stride + int64_t{query} * (p.dim + 2);
  float most = kMinusInfinity;
  for (int32_t s = 0; s < p.num_splits; ++s) most = fmaxf(most, partial[s * stride + p.dim]);
  const float base = most == kMinusInfinity ? 0.0f : most;
  float sum = 0.0f;
  for (int32_t s = 0; s < p.num_splits; ++s) {
    sum += exp2_approx(partial[s * stride + p.dim] - base) * partial[s * stride + p.dim + 1];
  }
  const int64_t t = segment.row_begin + (tile.first + query) / p.group;
  const int64_t head = int64_t{unit % p.num_kv_heads} * p.group + (tile.first + query) % p.group;
  for (int32_t d = static_cast<int32_t>(threadIdx.x); d < p.dim; d += kMergeThreads) {
    float x = 0.0f;
    for (int32_t s = 0; s < p.num_splits; ++s) {
      x += exp2_approx(partial[s * stride + p.dim] - base) * partial[s * stride + d];
    }
    store_one(p.out + (t * p.out_stride + head * p.dim + d) * bytes_of_element(p.out_type), p.out_type,
              sum == 0.0f ? 0.0f : x / sum);
  }
}

struct DecodePlan {
  int32_t num_splits = 1;
  int32_t split_entries = 0;
};

// Two blocks for each multiprocessor where there is that much to split; spans are whole multiples of 64 entries.
DecodePlan plan_decode(int64_t units, int64_t longest, int32_t num_multiprocessors, bool is_deterministic) {
  const int64_t least = is_deterministic ? kFixedSplit : kMinSplit;
  const int64_t spans = std::max<int64_t>(1, (longest + least - 1) / least);
  if (is_deterministic) return {static_cast<int32_t>(spans), kFixedSplit};
  const int64_t wanted =
      std::clamp<int64_t>(2 * int64_t{num_multiprocessors} / std::max<int64_t>(1, units), 1, spans);
  const int64_t spans_each = (spans + wanted - 1) / wanted;
  return {static_cast<int32_t>((spans + spans_each - 1) / spans_each),
          static_cast<int32_t>(spans_each * least)};
}

}  // namespace

void decode_attention(Context& context, const DecodeAttentionArgs& args) {
  const AttentionShape& shape = args.shape;
  const int32_t group = shape.num_heads / shape.num_kv_heads;
  size_t num_tiles = 0;
  int32_t longest = 0, most_queries = 0;
  for (const DecodeSegment& segment : args.segments) {
    most_queries =
        std::max(most_queries, static_cast<int32_t>(std::min<int64_t>(segment.num_rows * group, kQueries)));
    num_tiles += blocks_of(segment.num_rows * group, kQueries);
    for (int32_t h = 0; h < shape.num_kv_heads; ++h) longest = std::max(longest, segment.tables.kv_len[h]);
  }
  if (num_tiles == 0) return;
  const Staged<AttentionSegment> segments = context.stage<AttentionSegment>(args.segments.size());
  const Staged<QueryTile> tiles = context.stage<QueryTile>(num_tiles);
  size_t tile = 0;
  for (size_t i = 0; i < args.segments.size(); ++i) {
    const DecodeSegment& segment = args.segments[i];
    AttentionSegment& view = segments.host[i];
    view = {};
    view.pages = context.page_table(segment.tables, shape.num_kv_heads);
    view.kv_len = context.upload(segment.tables.kv_len, shape.num_kv_heads);
    view.stride = segment.tables.stride;
    view.row_begin = segment.row_begin;
    view.num_rows = static_cast<int32_t>(segment.num_rows);
    const auto queries = static_cast<int32_t>(segment.num_rows) * group;
    for (int32_t first = 0; first < queries; first += kQueries)
      tiles.host[tile++] = {static_cast<int32_t>(i), first};
  }
  const int64_t units = static_cast<int64_t>(num_tiles) * shape.num_kv_heads;
  const DecodePlan plan =
      plan_decode(units, longest, context.limits().num_multiprocessors, context.is_deterministic());
  // As many tiles at once as there is room for the parts of.
  float* partial = nullptr;
  size_t tiles_at_once = num_tiles;
  if (plan.num_splits > 1) {
    const int64_t floats =
        int64_t{shape.num_kv_heads} * plan.num_splits * most_queries * (shape.head_dim + 2);
    tiles_at_once = static_cast<size_t>(std::clamp<int64_t>((context.workspace_left() - 256) / (floats * 4),
                                                            1, static_cast<int64_t>(num_tiles)));
    partial = context.workspace<float>(static_cast<int64_t>(tiles_at_once) * floats);
  }
  const int32_t* positions = context.upload(args.positions);

  dispatch_float(args.cache.dtype, [&]<class T>() {
    DecodeParams<T> params{.segments = segments.device,
                           .tiles = tiles.device,
                           .positions = positions,
                           .q = static_cast<const std::byte*>(args.q.data),
                           .out = static_cast<std::byte*>(args.out.data),
                           .partial = partial,
                           .cache = paged_view<T>(args.cache),
                           .q_stride = args.q.stride,
                           .out_stride = args.out.stride,
                           .q_type = args.q.dtype,
                           .out_type = args.out.dtype,
                           .num_kv_heads = shape.num_kv_heads,
                           .num_splits = plan.num_splits,
                           .split_entries = plan.split_entries,
                           .partial_rows = most_queries,
                           .stages = kMaxStages,
                           .slot_shift = slot_shift(args.cache),
                           .group = group,
                           .dim = shape.head_dim,
                           .window = shape.window,
                           .scale = shape.scale,
                           .softcap = shape.softcap};
    for (size_t first = 0; first < num_tiles; first += tiles_at_once) {
      params.tiles = tiles.device + first;
      const auto count = static_cast<uint32_t>(std::min(tiles_at_once, num_tiles - first) *
                                               static_cast<size_t>(shape.num_kv_heads));
      dispatch_head_dim(shape.head_dim, [&]<int32_t kDim>() {
        using Shared = DecodeShared<T, kDim>;
        const auto shared_bytes = [&](int32_t stages) {
          return static_cast<int32_t>(sizeof(Shared) +
                                      static_cast<size_t>(stages - 1) * sizeof(Shared::tiles));
        };
        if (shared_bytes(kMaxStages) > context.limits().max_shared_bytes) params.stages = 2;
        launch(decode_attention_kernel<T, kDim>, {.x = count, .y = static_cast<uint32_t>(plan.num_splits)},
               kThreads, static_cast<uint32_t>(shared_bytes(params.stages)), context.ready(), params);
      });
      if (partial) {
        launch(decode_merge_kernel<T>, {.x = count, .y = static_cast<uint32_t>(most_queries)}, kMergeThreads,
               0, context.ready(), params);
      }
    }
  });
}

int32_t decode_shared_bytes(DType cache, int32_t head_dim) {
  int32_t bytes = 0;
  dispatch_float(cache, [&]<class T>() {
    dispatch_head_dim(head_dim, [&]<int32_t kDim>() {
      bytes = sizeof(DecodeShared<T, kDim>) + sizeof(DecodeShared<T, kDim>::tiles);
    });
  });
  return bytes;
}

}  // namespace restkv::cuda
