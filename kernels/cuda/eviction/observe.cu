// observe: softmax statistics of each (query, head) over the rows it sees, in one pass over tiles of K and V.
// The running top row is kept apart from the rest (eviction_math.md section 1):
//   top logit m | rest = sum_{i != top} exp(l_i - m) | acc = sum_{i != top} exp(l_i - m) v_i
// When a larger logit comes, the old top row joins the rest. Then a_top = 1 / (1 + rest) and the mean output of the other
// rows acc / rest are exact even where a_top rounds to 1. Equal logits: the older row stays the top.
// A query that sees nothing has top -1, lse +inf and so weights of 0 everywhere; NaN logits leave NaN in rest and lse.
//
//   value_mean_kernel  grid (16 columns, KV head, item)   v_mean, the centre of the projections
//   observe_kernel     grid (split of the rows, unit)     a unit is 32 queries of one head; partial (m, top, rest, acc)
// Then observe_merge.cu. Rows and queries of one 16-bit type: observe_mma.cu in place of observe_kernel, whose acc may hold the
// top row, too (kTopIsIn).
// Splits depend on N alone, so neighbours in the batch change no bit. The block is 128 threads: 64 rows x 32 queries.
// Bound: f32 multiply-adds, 4*N*H*Q*D; K and V come from L2 once per (head, 32 queries). Shared memory 38 KiB and
// 32 * D floats: 56 KiB at D = 128 (2 blocks an SM of sm_80), 71 KiB at D = 256.
// Occupancy: value_mean_kernel 512 x 2, observe_kernel 128 x 3.
#include "kernels/cuda/eviction/drift.h"
#include "kernels/cuda/eviction/item_views.h"
#include "kernels/cuda/eviction/observe_after.h"
#include "kernels/cuda/eviction/observe_parts.h"
#include "kernels/cuda/eviction/observe_view.h"
#include "kernels/cuda/eviction/row_tile.h"

namespace restkv::cuda {
namespace {

constexpr int32_t kMeanRows = 1024;  // at most, spread evenly
constexpr int32_t kMeanCols = 16;    // of a block
constexpr int32_t kMeanThreads = 512;
constexpr int32_t kMeanLanes = kMeanThreads / (kMeanCols / 4);  // rows at a time
constexpr int32_t kMeanLoads = kMeanRows / kMeanLanes;          // of a thread, all on their way at once
constexpr int32_t kMeanWarps = kMeanThreads / 32;
constexpr int32_t kValueCols = 64;  // columns of V at a time
constexpr int32_t kValueStride = kValueCols + 4;
constexpr int32_t kWeightStride = kTileCols + 4;
static_assert(kMeanRows % kMeanLanes == 0);
static_assert(kTileThreads == (kTileCols / 4) * (kValueCols / 4), "a thread owns 4 queries x 4 columns of V");
static_assert(kTileThreads == 4 * kTileCols, "four threads share a query's statistics");

// Any centre near the mean of V saves the digits that projections of values far from 0 would lose; it cancels in p - u. So
// at most 1024 rows, evenly spread, are averaged: each thread sums 4 columns of 8 of them, then its warp, then one thread a column.
__global__ void __launch_bounds__(kMeanThreads, 2)
    value_mean_kernel(const __grid_constant__ ObserveParams p) {
  wait_for_previous();
  const ObserveView& item = p.items[blockIdx.z];
  const auto head = static_cast<int32_t>(blockIdx.y);
  const int32_t dim = p.shape.dim;
  const RowsView source = item.rows;
  const DeviceRows rows(source, p.pool, head, dim);
  float* parts = shared_memory<float>();  // [warps, 16]
  const int32_t step = max(1, (rows.num_rows + kMeanRows - 1) / kMeanRows);
  const int32_t count = (rows.num_rows + step - 1) / step;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) / (kMeanCols / 4),
                c = static_cast<int32_t>(threadIdx.x) % (kMeanCols / 4) * 4,
                d = static_cast<int32_t>(blockIdx.x) * kMeanCols + c;
  float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  if (count > 0 && d < dim) {
    int32_t row[kMeanLoads], page[kMeanLoads];
    uint4 raw[kMeanLoads];
#pragma unroll
    for (int32_t i = 0; i < kMeanLoads; ++i) {
      row[i] = min(lane + i * kMeanLanes, count - 1) * step;
      page[i] = rows.page_of(row[i]);
    }
#pragma unroll
    for (int32_t i = 0; i < kMeanLoads; ++i) {
      const DType dtype = rows.dtype(row[i]);
      raw[i] = load_raw_four(rows.at(row[i], page[i], true) + int64_t{d} * bytes_of_element(dtype), dtype);
    }
#pragma unroll
    for (int32_t i = 0; i < kMeanLoads; ++i) {
      if (lane + i * kMeanLanes >= count) continue;
      const float4 v = unpack_four(raw[i], rows.dtype(row[i]));
      sum[0] += v.x;
      sum[1] += v.y;
      sum[2] += v.z;
      sum[3] += v.w;
    }
  }
#pragma unroll
  for (uint32_t bits = kMeanCols / 4; bits < 32; bits *= 2) {
#pragma unroll
    for (float& x : sum) x += shuffle_xor(x, bits);
  }
  if (lane_idx() < kMeanCols / 4) {
    store_vector(parts + static_cast<int32_t>(warp_idx()) * kMeanCols + c,
                 float4{sum[0], sum[1], sum[2], sum[3]});
  }
  sync_threads();
  const auto column = static_cast<int32_t>(threadIdx.x),
             at = static_cast<int32_t>(blockIdx.x) * kMeanCols + column;
  if (column < kMeanCols && at < dim) {
    float total = 0.0f;
#pragma unroll
    for (int32_t i = 0; i < kMeanWarps; ++i) total += parts[i * kMeanCols + column];
    item.v_mean[head * item.mean_stride + at] = total / static_cast<float>(max(1, count));
  }
}

struct ObserveShared {
  float row_tile[kTileRows * kRowStride];
  float column_tile[kTileDepth * kColStride];
  float values[kTileRows * kValueStride];    // 64 columns of V
  float weights[kTileRows * kWeightStride];  // [row, query] logits, then exp(l - m)
  int32_t row_positions[kTileRows];
  int32_t query_positions[kTileCols];
  float factor[kTileCols];     // exp(old m - new m) where the top changed, else 1
  int32_t old_top[kTileCols];  // the row that joins the rest, -1: none
  float acc[4];                // [32, D], as long as the launch made it
};

static_assert(sizeof(ObserveShared) + 4 * kTileCols * 128 <= (163u << 10) / 2, "2 blocks of sm_80");
static_assert(sizeof(ObserveShared) + 4 * kTileCols * 256 <= (99u << 10), "sm_86");

// acc = acc * factor + factor * v[old top] + weights^T V, 64 columns at a time. Barriers inside and at the end.
__device__ __forceinline__ void add_values(const DeviceRows& rows, int32_t begin, int32_t count, int32_t dim,
                                           ObserveShared& shared) {
  const int32_t t0 = static_cast<int32_t>(threadIdx.x) / 16 * 4;
  const int32_t c0 = static_cast<int32_t>(threadIdx.x) % 16 * 4;
  for (int32_t d0 = 0; d0 < dim; d0 += kValueCols) {
    load_row_tile(rows, true, begin, count, d0, kValueCols, shared.values, kValueStride);
    sync_threads();
    const int32_t d = d0 + c0;
    if (d < dim) {
      float acc[4][4];
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
        const int32_t t = t0 + i;
        const float factor = shared.factor[t];
        const float4 old = load_vector<float4>(shared.acc + t * dim + d);
        float4 top = {0.0f, 0.0f, 0.0f, 0.0f};
        if (const int32_t row = shared.old_top[t]; row >= 0) {
          const DType dtype = rows.dtype(row);
          top = load_four(rows.value(row) + int64_t{d} * bytes_of_element(dtype), dtype);
        }
        acc[i][0] = (old.x + top.x) * factor;
        acc[i][1] = (old.y + top.y) * factor;
        acc[i][2] = (old.z + top.z) * factor;
        acc[i][3] = (old.w + top.w) * factor;
      }
      for (int32_t r = 0; r < count; ++r) {
        const float4 w = load_vector<float4>(shared.weights + r * kWeightStride + t0);
        const float4 v = load_vector<float4>(shared.values + r * kValueStride + c0);
        const float weight[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
          acc[i][0] += weight[i] * v.x;
          acc[i][1] += weight[i] * v.y;
          acc[i][2] += weight[i] * v.z;
          acc[i][3] += weight[i] * v.w;
        }
      }
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
        store_vector(shared.acc + (t0 + i) * dim + d, float4{acc[i][0], acc[i][1], acc[i][2], acc[i][3]});
      }
    }
    sync_threads();
  }
}

__global__ void __launch_bounds__(kTileThreads, 3) observe_kernel(const __grid_constant__ ObserveParams p) {
  wait_for_previous();
  const Unit unit = unit_of(p, blockIdx.y);
  const ObserveView& item = p.items[unit.item];
  if (unit.first >= item.queries.num_queries) return;
  const int32_t dim = p.shape.dim;
  const DeviceRows rows(item.rows, p.pool, unit.head / p.shape.group, dim);
  const auto split = static_cast<int32_t>(blockIdx.x);
  if (split >= num_splits(rows.num_rows)) return;
  ObserveShared& shared = *shared_memory<ObserveShared>();
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t split_begin = split * rows_per_split(rows.num_rows);
  const int32_t split_end = min(rows.num_rows, split_begin + rows_per_split(rows.num_rows));

  load_query_positions(item.queries, unit.first, shared.query_positions);
  if (p.with_values) {
    for (int32_t i = thread; i < kTileCols * dim; i += kTileThreads) shared.acc[i] = 0.0f;
  }
  sync_threads();
  const int32_t last = min(item.queries.num_queries - unit.first, kTileCols) - 1;
  const int32_t last_position = shared.query_positions[last];
  // Statistics of query thread / 4, the same in its four threads.
  const int32_t t = thread / 4, part = thread % 4;
  float top_logit = -kInfinity, rest = 0.0f;
  int32_t top = -1;
  for (int32_t begin = split_begin; begin < split_end; begin += kTileRows) {
    const int32_t count = min(kTileRows, split_end - begin);
    if (rows.position(begin) > last_position) break;  // seen by none
    load_row_positions(rows, begin, count, shared.row_positions);
    sync_threads();
    Patch logits;
    tile_logits(rows, item.queries, p.shape, unit.head, begin, count, unit.first, shared.row_positions,
                shared.query_positions, shared.row_tile, shared.column_tile, logits);
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
#pragma unroll
      for (int32_t j = 0; j < 4; ++j) {
        shared.weights[(patch_row() + i) * kWeightStride + patch_col() + j] = logits[i][j];
      }
    }
    sync_threads();

    float best = top_logit;
    int32_t best_row = -1;
    float* weights = shared.weights + part * (kTileRows / 4) * kWeightStride + t;  // 16 rows of one query
    for (int32_t r = 0; r < kTileRows / 4; ++r) {
      const float logit = weights[r * kWeightStride];
      if (logit > best) {
        best = logit;
        best_row = part * (kTileRows / 4) + r;
      }
    }
#pragma unroll
    for (uint32_t bits = 1; bits < 4; bits *= 2) {
      const float other = shuffle_xor(best, bits);
      const int32_t other_row = shuffle_xor(best_row, bits);
      if (other_row >= 0 && (other > best || best_row < 0 || (other == best && other_row < best_row))) {
        best = other;
        best_row = other_row;
      }
    }
    float factor = 1.0f;
    int32_t old_top = -1;
    if (best_row >= 0) {
      if (top >= 0) {
        factor = expf(top_logit - best);
        rest = rest * factor + factor;
        old_top = top;
      }
      top_logit = best;
      top = begin + best_row;
    }
    const float shift = top >= 0 ? top_logit : 0.0f;
    float sum = 0.0f;
    for (int32_t r = 0; r < kTileRows / 4; ++r) {
      float weight = expf(weights[r * kWeightStride] - shift);
      if (best_row == part * (kTileRows / 4) + r) weight = 0.0f;
      weights[r * kWeightStride] = weight;
      sum += weight;
    }
#pragma unroll
    for (uint32_t bits = 1; bits < 4; bits *= 2) sum += shuffle_xor(sum, bits);
    rest += sum;
    if (part == 0) {
      shared.factor[t] = factor;
      shared.old_top[t] = old_top;
    }
    sync_threads();
    if (p.with_values) add_values(rows, begin, count, dim, shared);
  }

  const int64_t at = int64_t{blockIdx.y} * p.max_splits + split;
  if (part == 0) {
    p.stats[at * 2 * kTileCols + t] = top_logit;
    p.stats[at * 2 * kTileCols + kTileCols + t] = rest;
    p.tops[at * kTileCols + t] = top;
  }
  if (p.with_values) {
    float* acc = p.accs + at * kTileCols * dim;
    for (int32_t i = thread; i < kTileCols * dim; i += kTileThreads) acc[i] = shared.acc[i];
  }
}

}  // namespace

void observe(Context& context, const ObserveArgs& args) {
  const AttentionShape& shape = args.shape;
  const Staged<ObserveView> items = context.stage<ObserveView>(args.items.size());
  size_t num_items = 0;
  int32_t most = 0, most_queries = 0;
  bool has_drift = false;
  for (const ObserveItem& item : args.items) {
    items.host[num_items++] = observe_view(context, item, shape);
    most = std::max(most, most_rows(item.rows, shape.num_kv_heads));
    most_queries = std::max(most_queries, static_cast<int32_t>(item.queries.positions.size()));
    has_drift |= item.drift_rows != nullptr;
  }
  if (most_queries == 0) return;
  const bool is_after = args.spec.kind == ScoreKind::kIndicatorAfter;
  ObserveParams params{};
  params.items = items.device;
  params.pool = pool_view(args.cache);
  params.shape = logit_shape(shape);
  params.num_heads = shape.num_heads;
  params.query_blocks = (most_queries + kTileCols - 1) / kTileCols;
  params.max_splits = most_splits(most);
  params.with_values = args.spec.kind == ScoreKind::kIndicatorQuery;
  params.normalize = args.spec.normalize;
  const int32_t dim = shape.head_dim;
  if (args.spec.kind != ScoreKind::kAttention) {
    launch(value_mean_kernel,
           {.x = blocks_of(dim, kMeanCols),
            .y = static_cast<uint32_t>(shape.num_kv_heads),
            .z = static_cast<uint32_t>(num_items)},
           kMeanThreads, 4 * kMeanWarps * kMeanCols, context.ready(), params);
  }

  // As many units at a time as half of the workspace holds; the drift has the other half.
  const int64_t per_unit =
      int64_t{params.max_splits} * kTileCols * (3 + (params.with_values ? dim : 0)) * int64_t{sizeof(float)};
  const int64_t units = static_cast<int64_t>(num_items) * shape.num_heads * params.query_blocks;
  const int64_t batch = std::min<int64_t>({units, (context.workspace_left() / 2 - 256) / per_unit, 65535});
  CHECK(batch > 0) << "a workspace of " << context.workspace_left() << " bytes for " << per_unit;
  params.stats = reinterpret_cast<float*>(context.workspace<std::byte>(batch * per_unit));
  params.tops = reinterpret_cast<int32_t*>(params.stats + batch * params.max_splits * 2 * kTileCols);
  params.accs = reinterpret_cast<float*>(params.tops + batch * params.max_splits * kTileCols);
  const auto shared_bytes = static_cast<uint32_t>(sizeof(ObserveShared) + 4 * kTileCols * dim);
  const DType type = mma_type(args);
  for (int64_t first = 0; first < units; first += batch) {
    params.first_unit = static_cast<int32_t>(first);
    params.num_units = static_cast<int32_t>(std::min(batch, units - first));
    if (type != DType::kF32) {
      observe_units(context, params, type);
    } else {
      launch(observe_kernel,
             {.x = static_cast<uint32_t>(params.max_splits), .y = static_cast<uint32_t>(params.num_units)},
             kTileThreads, shared_bytes, context.ready(), params);
    }
    merge_observed(context, params);
  }
  if (is_after) observe_after(context, args, items.device, most);
  if (has_drift) observe_drift(context, args, items.host, items.device, most);
}

}  // namespace restkv::cuda
