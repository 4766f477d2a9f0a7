// score: one number for each (KV head, row). For the indicators (restkv.md sections 2, 3 and 5; arXiv 2605.08840 eq. 7):
//   u_j = R_g (v_j - v_mean) of a tile, in shared memory, never stored;  e_tgj = a/(1-a) * ||p_tg - u_j||^tau
//   a > 1/2 (at most the top row of a query): e = a (1-a)^(tau-1) ||p'_tg - u_j||^tau with p' the output of the other rows
//   s_j = over the group of (over the queries of e_tgj)
// Grid: (64 rows, KV head, item); a block of 128 threads owns the scores of its rows. For each head of the group it projects
// the tile once, then takes 32 queries at a time: logits, weights, distances, all as 4 x 4 patches in registers; sums over
// queries are 8-lane shuffles in a fixed order, so neighbours in the batch change no bit.
// Bound: f32 multiply-adds, N*H*(D*D/2 + 2*Q*D); the tile of K, V and R_g comes from L2 G times. Shared memory: 14 KiB and
// the projected tile of 64 * (D + 1) floats: 46 KiB at D = 128 (3 blocks an SM of sm_80), 78 KiB at D = 256.
// Occupancy: score_kernel 128 x 3.
#include "kernels/cuda/eviction/score_view.h"

namespace restkv::cuda {
namespace {

struct ScoreShared {
  float row_tile[kTileRows * kRowStride];
  float column_tile[kTileDepth * kColStride];
  int32_t row_positions[kTileRows];
  int32_t query_positions[kTileCols];
  float weights[kTileCols];  // of a query in the reduction, 0: skipped
  float projected[2];        // [64, padded_stride(D)], as long as the launch made it
};

static_assert(sizeof(ScoreShared) + 4 * kTileRows * padded_stride(128) <= (163u << 10) / 3,
              "3 blocks of sm_80");
static_assert(sizeof(ScoreShared) + 4 * kTileRows * padded_stride(256) <= (99u << 10), "sm_86");

// splitmix64's finaliser: a hash of (layer, head, position) as a number in [0, 1).
__device__ __forceinline__ float hash_score(int32_t layer, int32_t head, int32_t position) {
  uint64_t x = (uint64_t{static_cast<uint32_t>(layer)} << 48) ^
               (uint64_t{static_cast<uint32_t>(head)} << 32) ^ static_cast<uint32_t>(position);
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  x ^= x >> 31;
  return static_cast<float>(x >> 40) * 0x1p-24f;
}

// lacache: the rows between the first and the last are cut into equal ranges, range r belongs to the layers
// [r * span, (r + 1) * span), the last one to the last `span` layers. A layer's own range first, then newer rows.
__device__ __forceinline__ float ladder_score(const ScoreParams& p, const ScoreView& item, int64_t row,
                                              int64_t num_rows) {
  const int64_t middle = num_rows - item.head_rows - item.window_rows;
  const int64_t index = row - item.head_rows;
  if (index < 0 || index >= middle) return static_cast<float>(2 * num_rows);
  const int64_t span = max(1, min(p.ladder_span, p.num_layers));
  const int64_t ranges = (p.num_layers + span - 1) / span;
  const int64_t range = index * ranges / middle;
  const int64_t first = min(range * span, p.num_layers - span);
  const bool is_own = item.layer >= first && item.layer < first + span;
  return static_cast<float>(is_own ? num_rows + index : index);
}

// u = R_g (v - v_mean) of the tile into shared.projected; zero in the padding columns. A barrier at its end.
__device__ __forceinline__ void project_tile(const ScoreParams& p, const ScoreView& item,
                                             const DeviceRows& rows, int32_t head, int32_t begin,
                                             int32_t count, ScoreShared& shared) {
  const int32_t dim = p.shape.dim;
  const int32_t stride = padded_stride(dim);
  const float* mean = item.v_mean + rows.head * item.mean_stride;
  for (int32_t e0 = 0; e0 < dim; e0 += kTileCols) {
    Patch acc;
    clear(acc);
    if (item.projection) {
      const float* r = item.projection + int64_t{head} * dim * item.projection_stride;
      for (int32_t d0 = e0; d0 < dim; d0 += kTileDepth) {
        load_row_tile(rows, true, begin, count, d0, kTileDepth, shared.row_tile, kRowStride);
        for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kTileDepth * kTileCols; i += kTileThreads) {
          const int32_t d = i / kTileCols, e = i % kTileCols;
          shared.column_tile[d * kColStride + e] =
              d0 + d < dim && e0 + e < dim ? r[(d0 + d) * item.projection_stride + e0 + e] : 0.0f;
        }
        sync_threads();
        for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kTileRows * kTileDepth; i += kTileThreads) {
          const int32_t d = i % kTileDepth;
          if (d0 + d < dim) shared.row_tile[i / kTileDepth * kRowStride + d] -= mean[d0 + d];
        }
        sync_threads();
        add_product(shared.row_tile, kRowStride, shared.column_tile, acc);
        sync_threads();
      }
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
#pragma unroll
        for (int32_t j = 0; j < 4; ++j) {
          shared.projected[(patch_row() + i) * stride + e0 + patch_col() + j] = acc[i][j];
        }
      }
    } else {
      load_row_tile(rows, true, begin, count, e0, kTileCols, shared.projected + e0, stride);
    }
  }
  sync_threads();
  if (!item.projection) {
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kTileRows * dim; i += kTileThreads) {
      shared.projected[i / dim * stride + i % dim] -= mean[i % dim];
    }
    sync_threads();
  }
}

// e of the top row of a query, which holds more than half of its attention.
__device__ __forceinline__ float singular_error(const ScoreParams& p, const ScoreView& item, int32_t head,
                                                int32_t query, const float* u) {
  const float rest = item.rest[head * item.stats_stride + query];
  if (rest == 0.0f) return kInfinity;  // the others' mass underflowed: the row is mandatory
  float sum = 0.0f;
  for (int32_t e = 0; e < p.shape.dim; ++e) {
    const float difference = item.p_rest[(int64_t{head} * p.shape.dim + e) * item.p_stride + query] - u[e];
    sum += difference * difference;
  }
  const float a = 1.0f / (1.0f + rest);
  if (p.tau == 1.0f) return a * sqrtf(sum);
  return a * powf(rest / (1.0f + rest), p.tau - 1.0f) * powf(sum, 0.5f * p.tau);
}

// Weights a of the tile for queries [first, first + 32).
__device__ __forceinline__ void tile_weights(const ScoreParams& p, const ScoreView& item,
                                             const DeviceRows& rows, int32_t head, int32_t begin,
                                             int32_t count, int32_t first, ScoreShared& shared, Patch& acc) {
  load_query_positions(item.queries, first, shared.query_positions);
  sync_threads();
  tile_logits(rows, item.queries, p.shape, head, begin, count, first, shared.row_positions,
              shared.query_positions, shared.row_tile, shared.column_tile, acc);
#pragma unroll
  for (int32_t j = 0; j < 4; ++j) {
    const int32_t t = first + patch_col() + j;
    const float lse = t < item.queries.num_queries ? item.lse[head * item.stats_stride + t] : kInfinity;
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) acc[i][j] = expf(acc[i][j] - lse);
  }
}

// kIndicatorQuery: scores[i] of the patch's four rows, the same in the 8 lanes that share them.
__device__ __forceinline__ void score_per_query(const ScoreParams& p, const ScoreView& item,
                                                const DeviceRows& rows, int32_t begin, int32_t count,
                                                ScoreShared& shared, float (&scores)[4]) {
  const int32_t dim = p.shape.dim;
  const int32_t stride = padded_stride(dim);
  for (int32_t g = 0; g < p.shape.group; ++g) {
    const int32_t head = rows.head * p.shape.group + g;
    project_tile(p, item, rows, head, begin, count, shared);
    float values[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    int32_t num_seeing = 0;
    for (int32_t first = 0; first < item.queries.num_queries; first += kTileCols) {
      query_weights(p, item, head, first, num_seeing, shared.weights);
      Patch a, d;
      tile_weights(p, item, rows, head, begin, count, first, shared, a);
      clear(d);
      for (int32_t e0 = 0; e0 < dim; e0 += kTileDepth) {
        for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kTileDepth * kTileCols; i += kTileThreads) {
          const int32_t e = i / kTileCols, t = i % kTileCols;
          shared.column_tile[e * kColStride + t] =
              e0 + e < dim && first + t < item.queries.num_queries
                  ? item.p[(int64_t{head} * dim + e0 + e) * item.p_stride + first + t]
                  : 0.0f;
        }
        sync_threads();
        add_distance(shared.projected + e0, stride, shared.column_tile, d);
        sync_threads();
      }
      int32_t seen_here = 0;
      float keep = 1.0f;  // (1-alpha)^seen_here, the older blocks' weight
      for (int32_t t = 0; t < kTileCols; ++t) {
        if (shared.weights[t] == 0.0f) continue;
        ++seen_here;
        keep *= 1.0f - p.alpha;
      }
      float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
      for (int32_t j = 0; j < 4; ++j) {
        const int32_t t = first + patch_col() + j;
        const float weight = shared.weights[patch_col() + j];
        if (weight == 0.0f) continue;  // padding, or it sees nothing
        const int64_t stats = head * item.stats_stride + t;
        const int32_t top = item.rest[stats] < 1.0f ? item.top[stats] - begin : -1;
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
          const float w = a[i][j];
          float e = w / (1.0f - w) * (p.tau == 1.0f ? sqrtf(d[i][j]) : powf(d[i][j], 0.5f * p.tau));
          if (top == patch_row() + i) {
            e = singular_error(p, item, head, t, shared.projected + (patch_row() + i) * stride);
          }
          if (p.normalize) e /= item.norm[stats];
          switch (p.reduce) {
            case QueryReduce::kRms: sums[i] += e * e; break;
            case QueryReduce::kMax: sums[i] = max_or_nan(sums[i], e); break;
            default: sums[i] += weight * e; break;
          }
        }
      }
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
#pragma unroll
        for (uint32_t bits = 1; bits < 8; bits *= 2) {
          const float other = shuffle_xor(sums[i], bits);
          // the sum does not depend on which lane adds: both operands are the same in either order
          sums[i] = p.reduce == QueryReduce::kMax ? max_or_nan(sums[i], other) : sums[i] + other;
        }
        values[i] = join_queries(p.reduce, values[i], sums[i], keep, num_seeing, seen_here);
      }
      num_seeing += seen_here;
      sync_threads();  // weights, and the projected tile for the next head, are written again
    }
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      scores[i] = join_group(p.group_reduce, scores[i], finish_queries(p.reduce, values[i], num_seeing));
    }
  }
#pragma unroll
  for (float& s : scores) s = finish_group(p.group_reduce, s, p.shape.group);
}

// kIndicatorAfter: rows [0, scored) by the smoothed attention, the window's rows 0. Two threads share a row.
__device__ __forceinline__ void score_smoothed(const ScoreParams& p, const ScoreView& item,
                                               const DeviceRows& rows, int32_t begin, int32_t count,
                                               ScoreShared& shared, float* out) {
  const int32_t dim = p.shape.dim;
  const int32_t r = static_cast<int32_t>(threadIdx.x) / 2;
  const int32_t half = static_cast<int32_t>(threadIdx.x) % 2;
  const int32_t scored = max(0, rows.num_rows - item.window_rows);
  float score = 0.0f;
  for (int32_t g = 0; g < p.shape.group; ++g) {
    const int32_t head = rows.head * p.shape.group + g;
    project_tile(p, item, rows, head, begin, count, shared);
    const float* u = shared.projected + r * padded_stride(dim);
    float sum = 0.0f;
    for (int32_t e = half; e < dim; e += 2) {
      const float difference = item.p[(int64_t{head} * dim + e) * item.p_stride] - u[e];
      sum += difference * difference;
    }
    sum += shuffle_xor(sum, 1);
    const float norm = p.tau == 1.0f ? sqrtf(sum) : powf(sum, 0.5f * p.tau);
    if (r < count && begin + r < scored) {
      score = join_group(p.group_reduce, score, item.ratio[head * item.ratio_stride + begin + r] * norm);
    }
    sync_threads();
  }
  if (half == 0 && r < count) {
    out[begin + r] = place_of(item.protect, rows, begin + r) == 1
                         ? finish_group(p.group_reduce, score, p.shape.group)
                         : 0.0f;
  }
}

// kAttention: sum over queries, mean over the group, on top of what the row has already.
__device__ __forceinline__ void sum_attention(const ScoreParams& p, const ScoreView& item,
                                              const DeviceRows& rows, int32_t begin, int32_t count,
                                              ScoreShared& shared, float (&scores)[4]) {
  const float share = 1.0f / static_cast<float>(p.shape.group);
  for (int32_t first = 0; first < item.queries.num_queries; first += kTileCols) {
    for (int32_t g = 0; g < p.shape.group; ++g) {
      Patch a;
      tile_weights(p, item, rows, rows.head * p.shape.group + g, begin, count, first, shared, a);
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
        float sum = 0.0f;
#pragma unroll
        for (int32_t j = 0; j < 4; ++j) {
          if (first + patch_col() + j < item.queries.num_queries) sum += share * a[i][j];
        }
#pragma unroll
        for (uint32_t bits = 1; bits < 8; bits *= 2) sum += shuffle_xor(sum, bits);
        scores[i] += sum;
      }
      sync_threads();
    }
  }
}

__device__ __forceinline__ float entry_sum(const ScoreParams& p, const ScoreView& item, int32_t head,
                                           int32_t row) {
  const int32_t per_page =
      static_cast<int32_t>(p.pool.position_offset / 4);  // floats that fit K and V of a page
  const int32_t page = item.sum_pages[int64_t{head} * item.sum_stride + row / per_page];
  return load_vector<float>(p.pool.pool + p.pool.page_bytes * page + int64_t{4} * (row % per_page));
}

__global__ void __launch_bounds__(kTileThreads, 3) score_kernel(const __grid_constant__ ScoreParams p) {
  wait_for_previous();
  const ScoreView& item = p.items[blockIdx.z];
  const auto head = static_cast<int32_t>(blockIdx.y);
  const DeviceRows rows(item.rows, p.pool, head, p.shape.dim);
  const int32_t begin = static_cast<int32_t>(blockIdx.x) * kTileRows;
  if (begin >= rows.num_rows) return;
  const int32_t count = min(kTileRows, rows.num_rows - begin);
  float* out = item.out + head * item.out_stride;

  if (p.kind < ScoreKind::kAttention) {
    const int32_t row = begin + static_cast<int32_t>(threadIdx.x);
    if (static_cast<int32_t>(threadIdx.x) >= count) return;
    if (p.kind == ScoreKind::kLadder) {
      out[row] = ladder_score(p, item, row, rows.num_rows);
    } else {
      const int32_t position = rows.position(row);
      out[row] =
          p.kind == ScoreKind::kHash ? hash_score(item.layer, head, position) : static_cast<float>(position);
    }
    return;
  }

  ScoreShared& shared = *shared_memory<ScoreShared>();
  load_row_positions(rows, begin, count, shared.row_positions);
  sync_threads();
  if (p.kind == ScoreKind::kIndicatorAfter) {
    score_smoothed(p, item, rows, begin, count, shared, out);
    return;
  }
  float scores[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  if (p.kind == ScoreKind::kAttention) {
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      const int32_t row = begin + patch_row() + i;
      if (row >= rows.num_rows) continue;
      if (item.accumulate) scores[i] = out[row];
      if (item.sum_pages && row < item.sum_len[head]) scores[i] = entry_sum(p, item, head, row);
    }
    sync_threads();  // out is read by 8 lanes and written by one
    sum_attention(p, item, rows, begin, count, shared, scores);
  } else {
    score_per_query(p, item, rows, begin, count, shared, scores);
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      const int32_t row = begin + patch_row() + i;
      if (row < rows.num_rows && place_of(item.protect, rows, row) != 1) scores[i] = 0.0f;
    }
  }
  if (patch_col() == 0) {
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      if (patch_row() + i < count) out[begin + patch_row() + i] = scores[i];
    }
  }
}

}  // namespace

void score(Context& context, const ScoreArgs& args) {
  const int32_t num_kv_heads = args.shape.num_kv_heads;
  const Staged<ScoreView> items = context.stage<ScoreView>(args.items.size());
  size_t count = 0;
  int32_t most = 0;
  for (const ScoreItem& item : args.items) {
    const Observation& o = item.observation;
    ScoreView view{};
    view.rows = rows_view(context, item.rows, num_kv_heads);
    if (needs_observation(args.spec.kind)) view.queries = queries_view(context, item.queries, args.shape);
    view.projection = static_cast<const float*>(item.projection.data);
    view.projection_stride = item.projection.stride;
    view.lse = static_cast<const float*>(o.lse.data);
    view.top = static_cast<const int32_t*>(o.top.data);
    view.rest = static_cast<const float*>(o.rest.data);
    view.norm = static_cast<const float*>(o.norm.data);
    view.p = static_cast<const float*>(o.p.data);
    view.p_rest = static_cast<const float*>(o.p_rest.data);
    view.v_mean = static_cast<const float*>(o.v_mean.data);
    view.ratio = static_cast<const float*>(o.ratio.data);
    view.stats_stride = o.lse.stride;
    view.p_stride = o.p.stride;
    view.mean_stride = o.v_mean.stride;
    view.ratio_stride = o.ratio.stride;
    if (item.sums) {
      view.sum_pages = context.page_table(*item.sums, num_kv_heads);
      view.sum_len = context.upload(item.sums->len, num_kv_heads);
      view.sum_stride = item.sums->stride;
    }
    view.out = static_cast<float*>(item.out.data);
    view.out_stride = item.out.stride;
    view.window_rows = item.window_rows;
    view.head_rows = item.head_rows;
    view.layer = item.layer;
    view.accumulate = item.accumulate;
    view.protect = protect_view(context, item.protect, num_kv_heads);
    items.host[count++] = view;
    most = std::max(most, most_rows(item.rows, num_kv_heads));
  }
  if (most == 0) return;
  const ScoreParams params{.items = items.device,
                           .pool = pool_view(args.cache),
                           .shape = logit_shape(args.shape),
                           .kind = args.spec.kind,
                           .reduce = args.spec.reduce,
                           .group_reduce = args.spec.group,
                           .alpha = args.spec.alpha,
                           .tau = args.spec.tau,
                           .normalize = args.spec.normalize,
                           .ladder_span = args.spec.ladder_span,
                           .num_layers = args.spec.num_layers};
  if (args.spec.kind == ScoreKind::kIndicatorQuery && score_indicator(context, args, params, most)) return;
  const bool is_projected =
      args.spec.kind == ScoreKind::kIndicatorQuery || args.spec.kind == ScoreKind::kIndicatorAfter;
  const auto shared_bytes = static_cast<uint32_t>(
      sizeof(ScoreShared) + (is_projected ? 4 * kTileRows * padded_stride(args.shape.head_dim) : 0));
  launch(score_kernel,
         {.x = blocks_of(most, kTileRows),
          .y = static_cast<uint32_t>(num_kv_heads),
          .z = static_cast<uint32_t>(count)},
         kTileThreads, shared_bytes, context.ready(), params);
}

}  // namespace restkv::cuda
