// Attention of decode rows over their own pages, split over the entries and merged (flash decoding):
//   s_j = softcap(scale q.k_j), p_j = exp(s_j - m), out = sum_j p_j v_j / sum_j p_j
// A block owns up to 16 queries of one KV head (rows x the G heads of the group, packed: the M side of mma.sync m16n8k16) and
// one span of its entries. Each of its warps takes every 4th tile of 16 entries and works alone: its own ring of stages filled by
// cp.async, its own online softmax in registers, no barrier of the block until its tiles are done (a loop with barriers moved
// 1.5 TB/s on an H100 whose memory has 3). Long rows have fewer warps at work, so that two stages fit sm_86. Lengths and
// positions come from the paged view; a row of several in one sequence sees the entries up to its own position. A row that
// sees nothing gives zeros. A tile that a query does not see leaves its state as it is.
// Grid: (unit, split); spans are whole tiles at fixed places of the entry index, as many as fill the card evenly: planned on the
// host from the longest head, the same for all layers of a step; `deterministic` makes each span 256 entries, so that neighbours
// change no bit. The plan lies in memory, so that a graph does for others: blocks past a head's own entries, and those of a tile
// that nobody has, are done at once. A head of one split is written to `out`; of several each leaves (acc, m, l), and the last
// block of a unit to arrive merges them in the order of the splits. A block has its tile, lengths and page ids and has asked for
// its first entries while the kernel before it runs: of 1,024 entries most of the time is such steps that wait for each other,
// and in a model each comes from memory. Bound: bandwidth, K and V once. Shared memory at D = 128, 16 bits: 4 warps x 3
// stages of 8.5 KiB and the queries, 106 KiB: 2 blocks of sm_90, 1 of sm_80; two stages (72 KiB) on smaller cards.
// Occupancy: decode_attention_kernel 128 x 2.
#include <algorithm>

#include "kernels/cuda/decode_parts.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

namespace restkv::cuda {
namespace {

constexpr int32_t kBlocks = 2;           // of a multiprocessor of sm_90
constexpr int32_t kPrefetchedTiles = 2;  // of a warp, asked for while the kernel before runs

// Before the wait: the plan, the tile, its lengths and page ids, which no kernel writes. The entries that the warp begins with are
// asked for, not read: they go to L2, where they are what the last kernel to write them made of them. In a model all of this has
// left L2 since the step before, and comes while the kernel before this one runs.
template <class T, int32_t kDim>
__device__ __forceinline__ DecodeUnit prefetch_unit(const DecodeParams<T>& p) {
  constexpr int32_t kWarps = kReaders<T, kDim>;
  DecodeUnit u;
  const auto unit = static_cast<int32_t>(blockIdx.x), split = static_cast<int32_t>(blockIdx.y);
  const auto lane = static_cast<int32_t>(lane_idx()), warp = static_cast<int32_t>(warp_idx());
  u.unit = unit;
  u.tile = p.tiles[(p.first_unit + unit) / p.num_kv_heads];
  u.kv_head = (p.first_unit + unit) % p.num_kv_heads;
  u.plan = *p.plan;
  u.kv_len = 0;
  u.last_page = 0;
  for (int32_t& page : u.pages) page = 0;
  if (u.tile.num_rows == 0) return u;
  const int32_t* pages = u.tile.pages + int64_t{u.kv_head} * u.tile.stride;
  // Page ids are on their way before the length says how many count.
  const WarpTiles most =
      tiles_of_warp<kWarps>(warp, split * u.plan.split_entries, split * u.plan.split_entries,
                            min(u.tile.stride << p.slot_shift, (split + 1) * u.plan.split_entries));
  if (p.window == 0) {
#pragma unroll
    for (int32_t i = 0; i < kMaxDecodeStages; ++i)
      if (i < most.count) u.pages[i] = pages[(most.first + i * kWarps) * kDecodeKeys >> p.slot_shift];
  }
  u.kv_len = u.tile.kv_len[u.kv_head];
  const int32_t begin = split * u.plan.split_entries;
  if (begin >= u.kv_len) return u;
  u.last_page = pages[(u.kv_len - 1) >> p.slot_shift];
  if (p.window == 0) {
    const int32_t count =
        tiles_of_warp<kWarps>(warp, begin, begin, min(u.kv_len, begin + u.plan.split_entries)).count;
    const int32_t bytes = kDecodeKeys * p.dim * static_cast<int32_t>(sizeof(T));
#pragma unroll
    for (int32_t i = 0; i < min(kPrefetchedTiles, kMaxDecodeStages); ++i) {
      if (i >= count) break;
      const int64_t slot = (most.first + i * kWarps) * kDecodeKeys & ((1 << p.slot_shift) - 1);
      const auto* keys = reinterpret_cast<const std::byte*>(p.cache.keys(u.pages[i]) + slot * p.dim);
      const auto* values = reinterpret_cast<const std::byte*>(p.cache.values(u.pages[i]) + slot * p.dim);
      for (int32_t at = lane * 128; at < bytes; at += 32 * 128) {
        prefetch_line(keys + at);
        prefetch_line(values + at);
      }
    }
  }
  if (threadIdx.x == 0)
    prefetch_line(p.cache.positions(u.last_page) + ((u.kv_len - 1) & ((1 << p.slot_shift) - 1)));
  return u;
}

template <class T, int32_t kDim>
__global__ void __launch_bounds__(kDecodeThreads, kBlocks)
    decode_attention_kernel(const __grid_constant__ DecodeParams<T> p) {
  const DecodeUnit u = prefetch_unit<T, kDim>(p);
  wait_for_previous();
  using Shared = DecodeShared<T, kDim>;
  [[maybe_unused]] constexpr int kUnroll = kUnrollTiles<T>;
  constexpr int32_t kWarps = kReaders<T, kDim>;
  constexpr int32_t kRow = Shared::kRow, kTile = Shared::kTile, kAccRow = Shared::kAccRow;
  auto& shared = *shared_memory<Shared>();
  static_assert(sizeof(Shared) + sizeof(Shared::ring) <= (99u << 10), "two stages on sm_86");
  static_assert(
      !kIsHalf<T> ||
          kBlocks * (sizeof(Shared) + (kMaxDecodeStages - 1) * sizeof(Shared::ring) + 1024) <= (228u << 10),
      "so many blocks of so many stages on sm_90");
  const auto split = static_cast<int32_t>(blockIdx.y);
  const int32_t split_begin = split * u.plan.split_entries, kv_head = u.kv_head;
  // A head has as many splits as its own length needs; the plan has as many as the longest.
  if (u.tile.num_rows == 0 || (split > 0 && split_begin >= u.kv_len)) return;
  const int32_t num_splits = max(1, (u.kv_len + u.plan.split_entries - 1) / u.plan.split_entries);
  const int32_t num_queries = min(u.tile.num_rows * p.group - u.tile.first, kDecodeQueries);
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const auto warp = static_cast<int32_t>(warp_idx());
  const auto lane = static_cast<int32_t>(lane_idx());
  AttentionSegment segment = {};
  segment.pages = u.tile.pages;
  segment.kv_len = u.tile.kv_len;
  segment.row_begin = u.tile.row_begin;
  segment.num_rows = u.tile.num_rows;
  segment.stride = u.tile.stride;

  // What a query sees is known from its position and that of the last entry, if nothing unusual is.
  int32_t position = 0, last_position = 0;
  if (thread < num_queries) {
    position = p.positions[u.tile.row_begin + (u.tile.first + thread) / p.group];
    if (u.kv_len > 0)
      last_position = p.cache.positions(u.last_page)[(u.kv_len - 1) & ((1 << p.slot_shift) - 1)];
  }

  int32_t begin = split_begin, end = min(u.kv_len, split_begin + u.plan.split_entries);
  WarpTiles tiles = {0, 0};
  T* ring = shared.ring + warp * p.stages * 2 * kTile;
  const int32_t* pages = u.tile.pages + int64_t{kv_head} * u.tile.stride;
  const auto page_of = [&](int32_t i) {
    return i < tiles.count ? pages[(tiles.first + i * kWarps) * kDecodeKeys >> p.slot_shift] : 0;
  };
  // A tile lies in one page. What lies outside of [begin, end), and columns from D on, become zeros.
  const auto copy = [&](int32_t i, int32_t page) {
    if (i < tiles.count) {
      constexpr int32_t kPiece = 16 / static_cast<int32_t>(sizeof(T)), kPieces = kDim / kPiece;
      static_assert(kDecodeKeys * kPieces % 32 == 0, "every lane has as many");
      const int32_t first = (tiles.first + i * kWarps) * kDecodeKeys;
      const int32_t there = begin - first, gone = end - first;  // rows of [there, gone)
      const int64_t slot = first & ((1 << p.slot_shift) - 1);
      T* stage = ring + i % p.stages * 2 * kTile;
      const auto copy_rows = [&](T* to, const T* from) {
#pragma unroll(kUnroll)
        for (int32_t n = 0; n < kDecodeKeys * kPieces / 32; ++n) {
          const int32_t j = n * 32 + lane, r = j / kPieces, c = j % kPieces * kPiece;
          const bool is_there = r >= there && r < gone && c < p.dim;
          cp_async16(to + r * kRow + c, from + (is_there ? r * p.dim + c : 0), is_there ? 16 : 0);
        }
      };
      // One after the other: each lies in one piece of memory.
      copy_rows(stage, p.cache.keys(page) + slot * p.dim);
      copy_rows(stage + kTile, p.cache.values(page) + slot * p.dim);
    }
    cp_async_commit();
  };
  int32_t next_page = 0;
  const auto start = [&](const auto& first_page) {
    tiles = tiles_of_warp<kWarps>(warp, split_begin, begin, end);
#pragma unroll
    for (int32_t i = 0; i < kMaxDecodeStages - 1; ++i)
      if (i + 1 < p.stages) copy(i, first_page(i));
    next_page =
        p.stages == kMaxDecodeStages ? first_page(kMaxDecodeStages - 1) : first_page(kMaxDecodeStages - 2);
  };
  // Without a window the first tiles are on their way before anything is known of the queries.
  if (p.window == 0) start([&](int32_t i) { return u.pages[i]; });

  load_queries<T, kDim, kDecodeQueries, kDecodeThreads>(p.q, p.q_type, p.q_stride, segment, kv_head, p.group,
                                                        p.dim, u.tile.first, shared.queries);
  if (thread < kDecodeQueries) {
    Visible seen;
    if (thread < num_queries) {
      if (p.window == 0 && last_position <= position) {
        seen.begin = 0;
        seen.end = u.kv_len;
      } else {
        seen =
            visible_entries(EntryRows<T>(segment, p.cache, p.slot_shift, kv_head, p.dim), position, p.window);
      }
    }
    shared.seen[thread] = seen;
  }
  sync_threads();

  if (warp < kWarps) {
    // Entries that some query sees, and those that all see.
    int32_t some_begin = INT32_MAX, some_end = 0, all_begin = 0, all_end = INT32_MAX;
    for (int32_t query = 0; query < num_queries; ++query) {
      const Visible one = shared.seen[query];
      some_begin = min(some_begin, one.begin);
      some_end = max(some_end, one.end);
      all_begin = max(all_begin, one.begin);
      all_end = min(all_end, one.end);
    }
    if (p.window > 0) {
      begin = max(begin, some_begin);
      end = min(end, some_end);
      start(page_of);
    }

    // The queries stay in registers where there are enough of them.
    constexpr bool kHoldsQueries = kIsHalf<T> && kDim <= 128;
    [[maybe_unused]] MmaA<T> held[kHoldsQueries ? kDim / 16 : 1];
    if constexpr (kHoldsQueries) {
#pragma unroll(kUnroll)
      for (int32_t d = 0; d < kDim; d += 16) load_a(held[d / 16], shared.queries + d, kRow);
    }
    const int32_t g = lane / 4, c = lane % 4 * 2;
    const Visible seen[2] = {shared.seen[g], shared.seen[g + 8]};
    float out[kDim / 8][4] = {};
    float most[2] = {kMinusInfinity, kMinusInfinity};
    float sum[2] = {0.0f, 0.0f};  // of this lane's columns
    for (int32_t i = 0; i < tiles.count; ++i) {
      if (p.stages == 3) {
        cp_async_wait<1>();
      } else {
        cp_async_wait<0>();
      }
      sync_warp();  // the tile is there for all lanes, and its predecessor's stage is free
      copy(i + p.stages - 1, next_page);
      next_page = page_of(i + p.stages);
      const T* keys = ring + i % p.stages * 2 * kTile;
      const T* values = keys + kTile;

      float s[2][4] = {};
#pragma unroll(kUnroll)
      for (int32_t d = 0; d < kDim; d += 16) {
        MmaA<T> a;
        if constexpr (kHoldsQueries) {
          a = held[d / 16];
        } else {
          load_a(a, shared.queries + d, kRow);
        }
        MmaB<T> b[2];
        load_b_pair(b, keys + d, kRow);
        mma(s[0], a, b[0]);
        mma(s[1], a, b[1]);
      }
      const int32_t first = (tiles.first + i * kWarps) * kDecodeKeys;
      const bool is_masked = first < max(all_begin, begin) || first + kDecodeKeys > min(all_end, end);
      float best[2] = {most[0], most[1]};
#pragma unroll(kUnroll)
      for (int32_t n = 0; n < 2; ++n) {
#pragma unroll(kUnroll)
        for (int32_t e = 0; e < 4; ++e) {
          float& x = s[n][e];
          x = log2_logit(x, p.scale, p.softcap);
          const int32_t entry = first + n * 8 + c + e % 2;
          if (is_masked && (entry < max(seen[e / 2].begin, begin) || entry >= min(seen[e / 2].end, end)))
            x = kMinusInfinity;
          best[e / 2] = fmaxf(best[e / 2], x);
        }
      }
      float base[2];
      bool is_moved = false;
#pragma unroll(kUnroll)
      for (int32_t h = 0; h < 2; ++h) {
        best[h] = fmaxf(best[h], shuffle_xor(best[h], 1));
        best[h] = fmaxf(best[h], shuffle_xor(best[h], 2));
        // no finite logit yet: weights are exp(-inf - 0) = 0, and NaN stays NaN
        base[h] = best[h] == kMinusInfinity ? 0.0f : best[h];
        is_moved |= best[h] != most[h];
      }
      if (any(is_moved)) {
        float factor[2];
#pragma unroll(kUnroll)
        for (int32_t h = 0; h < 2; ++h) {
          factor[h] = exp2_approx(most[h] - base[h]);
          most[h] = best[h];
          sum[h] *= factor[h];
        }
#pragma unroll(kUnroll)
        for (int32_t n = 0; n < kDim / 8; ++n) {
#pragma unroll(kUnroll)
          for (int32_t e = 0; e < 4; ++e) out[n][e] *= factor[e / 2];
        }
      }
#pragma unroll(kUnroll)
      for (int32_t n = 0; n < 2; ++n) {
#pragma unroll(kUnroll)
        for (int32_t e = 0; e < 4; ++e) {
          s[n][e] = exp2_approx(s[n][e] - base[e / 2]);
          sum[e / 2] += s[n][e];
        }
      }
      MmaA<T> weights;
      a_from_accumulators(weights, s[0], s[1]);
#pragma unroll(kUnroll)
      for (int32_t n = 0; n < kDim / 8; n += 2) {
        MmaB<T> b[2];
        load_b_pair_trans(b, values + n * 8, kRow);
        mma(out[n], weights, b[0]);
        mma(out[n + 1], weights, b[1]);
      }
    }
    cp_async_wait<0>();
    sync_warp();  // its part of the ring is free

    auto* acc = reinterpret_cast<float*>(ring);
#pragma unroll(kUnroll)
    for (int32_t n = 0; n < kDim / 8; ++n) {
#pragma unroll(kUnroll)
      for (int32_t h = 0; h < 2; ++h) {
        store_vector(acc + (g + 8 * h) * kAccRow + n * 8 + c, float2{out[n][2 * h], out[n][2 * h + 1]});
      }
    }
#pragma unroll(kUnroll)
    for (int32_t h = 0; h < 2; ++h) {
      sum[h] += shuffle_xor(sum[h], 1);
      sum[h] += shuffle_xor(sum[h], 2);
      if (c == 0) {
        shared.most[warp][g + 8 * h] = most[h];
        shared.sum[warp][g + 8 * h] = sum[h];
      }
    }
  }
  sync_threads();

  constexpr int32_t kFours = kDim / 4;
  const int64_t first_row = int64_t{u.unit} * u.plan.num_splits * p.partial_rows;
  const int64_t partial_row = first_row + int64_t{split} * p.partial_rows;
  for (int32_t i = thread; i < num_queries * kFours; i += kDecodeThreads) {
    const int32_t query = i / kFours, d = i % kFours * 4;
    if (d >= p.dim) continue;
    float most = kMinusInfinity;
#pragma unroll
    for (int32_t w = 0; w < kWarps; ++w) most = fmaxf(most, shared.most[w][query]);
    const float base = most == kMinusInfinity ? 0.0f : most;
    float sum = 0.0f;
    float4 x = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int32_t w = 0; w < kWarps; ++w) {
      const float factor = exp2_approx(shared.most[w][query] - base);
      const auto* acc = reinterpret_cast<const float*>(shared.ring + w * p.stages * 2 * kTile);
      const auto y = load_vector<float4>(acc + query * kAccRow + d);
      sum += factor * shared.sum[w][query];
      x.x += factor * y.x;
      x.y += factor * y.y;
      x.z += factor * y.z;
      x.w += factor * y.w;
    }
    if (num_splits > 1) {
      store_vector(p.partial + (partial_row + query) * p.dim + d, x);
      if (d == 0) p.partial_stats[partial_row + query] = {most, sum};
    } else {
      store_output(p, output_of(p, u.tile, kv_head, query), d, x, sum);
    }
  }
  if (num_splits == 1) return;
  sync_threads();
  if (thread == 0) {
    thread_fence();  // the block's part is there for every block that sees the count
    shared.is_last = atomic_add(p.arrived + u.unit, 1u) == static_cast<uint32_t>(num_splits) - 1u ? 1u : 0u;
    if (shared.is_last != 0) p.arrived[u.unit] = 0;  // for the next launch
    thread_fence();
  }
  sync_threads();
  if (shared.is_last == 0) return;
  merge_splits<T, kDim>(p, u.tile, first_row, num_splits, kv_head, num_queries);
}

// Shared memory with so many stages.
int32_t stage_bytes(DType cache, int32_t head_dim, int32_t stages) {
  size_t bytes = 0;
  dispatch_float(cache, [&]<class T>() {
    dispatch_head_dim(head_dim, [&]<int32_t kDim>() {
      using Shared = DecodeShared<T, kDim>;
      bytes = sizeof(Shared) + static_cast<size_t>(stages - 1) * sizeof(Shared::ring);
    });
  });
  return static_cast<int32_t>(bytes);
}

}  // namespace

void decode_attention(Context& context, const DecodeAttentionArgs& args) {
  const AttentionShape& shape = args.shape;
  const int32_t group = shape.num_heads / shape.num_kv_heads;
  size_t num_tiles = 0;
  int32_t longest = 0, most_queries = 0;
  for (const DecodeSegment& segment : args.segments) {
    most_queries = std::max(
        most_queries, static_cast<int32_t>(std::min<int64_t>(segment.num_rows * group, kDecodeQueries)));
    num_tiles += blocks_of(segment.num_rows * group, kDecodeQueries);
    for (int32_t h = 0; h < shape.num_kv_heads; ++h) longest = std::max(longest, segment.tables.kv_len[h]);
  }
  if (num_tiles == 0) return;
  const auto num_kv_heads = static_cast<size_t>(shape.num_kv_heads);
  const size_t num_places = context.num_places(args.segments.size(), args.q.rows);
  const auto row_tiles = static_cast<size_t>(blocks_of(group, kDecodeQueries));
  const size_t all_tiles = num_tiles + (num_places - args.segments.size()) * row_tiles;
  const Staged<DecodeTile> tiles = context.stage<DecodeTile>(all_tiles);
  const Staged<int32_t> lengths = context.stage<int32_t>(num_places * num_kv_heads);
  const Staged<DecodePlan> plans = context.stage<DecodePlan>(1);
  const int32_t* positions = context.upload(args.positions);
  std::fill(tiles.host.begin() + static_cast<std::ptrdiff_t>(num_tiles), tiles.host.end(), DecodeTile{});
  size_t tile = 0;
  for (size_t i = 0; i < args.segments.size(); ++i) {
    const DecodeSegment& segment = args.segments[i];
    std::copy_n(segment.tables.kv_len, num_kv_heads, lengths.host.data() + i * num_kv_heads);
    DecodeTile view = {.pages = context.page_table(segment.tables, shape.num_kv_heads),
                       .kv_len = lengths.device + i * num_kv_heads,
                       .row_begin = segment.row_begin,
                       .num_rows = static_cast<int32_t>(segment.num_rows),
                       .stride = segment.tables.stride,
                       .first = 0};
    for (; view.first < view.num_rows * group; view.first += kDecodeQueries) tiles.host[tile++] = view;
  }
  const DType type = args.cache.dtype;
  const int32_t most_shared = context.limits().max_shared_bytes;
  const int32_t stages =
      stage_bytes(type, shape.head_dim, kMaxDecodeStages) <= most_shared ? kMaxDecodeStages : 2;
  const int32_t shared_bytes = stage_bytes(type, shape.head_dim, stages);
  // Each block takes 1 KiB more than it asks for, and so much more than a block may have is there for all together.
  const int64_t places =
      int64_t{context.limits().num_multiprocessors} * ((most_shared + 1024) / (shared_bytes + 1024));
  // In steps of 256, so that a growing cache changes the launch, and with it the graph of the step, seldom.
  const int64_t planned =
      longest <= kMinSplit ? longest : (int64_t{longest} + kFixedSplit - 1) / kFixedSplit * kFixedSplit;
  const DecodePlan plan = plan_decode(static_cast<int64_t>(num_tiles) * shape.num_kv_heads, planned, places,
                                      context.is_deterministic());
  *plans.host.data() = plan;
  int32_t num_splits = plan.num_splits;  // of the launch
  if (context.is_listing()) {
    // A bucket has more rows than half of its places (graph_cache.h).
    const int64_t fewest = (args.q.rows / 2 + 1) * static_cast<int64_t>(row_tiles * num_kv_heads);
    num_splits = listed_splits(plan, fewest, places, context.is_deterministic());
  }
  // As many units at once as there is room for the parts of: `deterministic` splits a long cache into thousands.
  const auto all_units = static_cast<int64_t>(all_tiles * num_kv_heads);
  int64_t units_at_once = all_units;
  float* partial = nullptr;
  float2* partial_stats = nullptr;
  if (num_splits > 1) {
    const int64_t room =
        (context.workspace_left() - 512) / (int64_t{most_queries} * (shape.head_dim + 2) * 4);
    num_splits = std::max(plan.num_splits, static_cast<int32_t>(std::min<int64_t>(num_splits, room)));
    const int64_t part_rows = int64_t{num_splits} * most_queries;
    units_at_once = std::clamp<int64_t>(std::min(room / num_splits, Context::kNumCounters), 1, all_units);
    partial = context.workspace<float>(units_at_once * part_rows * shape.head_dim);
    partial_stats = context.workspace<float2>(units_at_once * part_rows);
  }

  dispatch_float(type, [&]<class T>() {
    DecodeParams<T> params{.tiles = tiles.device,
                           .plan = plans.device,
                           .positions = positions,
                           .q = static_cast<const std::byte*>(args.q.data),
                           .out = static_cast<std::byte*>(args.out.data),
                           .partial = partial,
                           .partial_stats = partial_stats,
                           .arrived = context.counters(),
                           .cache = paged_view<T>(args.cache),
                           .q_stride = args.q.stride,
                           .out_stride = args.out.stride,
                           .q_type = args.q.dtype,
                           .out_type = args.out.dtype,
                           .num_kv_heads = shape.num_kv_heads,
                           .first_unit = 0,
                           .partial_rows = most_queries,
                           .stages = stages,
                           .slot_shift = slot_shift(args.cache),
                           .group = group,
                           .dim = shape.head_dim,
                           .window = shape.window,
                           .scale = shape.scale,
                           .softcap = shape.softcap};
    for (int64_t first = 0; first < all_units; first += units_at_once) {
      params.first_unit = static_cast<int32_t>(first);
      const auto count = static_cast<uint32_t>(std::min(units_at_once, all_units - first));
      dispatch_head_dim(shape.head_dim, [&]<int32_t kDim>() {
        launch(decode_attention_kernel<T, kDim>, {.x = count, .y = static_cast<uint32_t>(num_splits)},
               kDecodeThreads, static_cast<uint32_t>(shared_bytes), context.ready(), params);
      });
    }
  });
}

int32_t decode_shared_bytes(DType cache, int32_t head_dim) { return stage_bytes(cache, head_dim, 2); }

}  // namespace restkv::cuda
