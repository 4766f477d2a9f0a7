// Mean index of the rows with the largest logits of each (query, head), for the drift of the adaptive pooling (restkv.md
// section 2): a threshold by radix select and a sum of indices, no sort. Equal logits: newer rows.
//   drift_logits_kernel  grid (64 rows, unit)   a unit is up to 32 queries of one head; their logits as ordered integers
//   drift_index_kernel   grid (query, unit)     selects and sums; every number but the last quotient is an integer
// As many units at a time as the workspace holds, so that nothing of size [H, Q, N] is kept. Bound: the first by f32
// multiply-adds 2*N*H*Q*D, the second by L2 reads of 6*4*N*H*Q bytes. Shared memory 13 KiB and 2 KiB.
// Occupancy: drift_logits_kernel 128 x 9, drift_index_kernel 256 x 4.
#include "kernels/cuda/eviction/drift.h"

#include "kernels/cuda/eviction/radix_select.h"

namespace restkv::cuda {
namespace {

constexpr int32_t kIndexThreads = 256;

struct DriftParams {
  const ObserveView* items;
  PoolView pool;
  LogitShape shape;
  int32_t num_heads;
  int32_t unit_queries;  // at most 32
  int32_t query_blocks;  // units of an item: H * query_blocks
  int32_t first_unit;    // of this launch
  int64_t stride;        // of a query's logits
  uint32_t* logits;      // [units, unit_queries, stride]
};

struct DriftShared {
  float row_tile[kTileRows * kRowStride];
  float column_tile[kTileDepth * kColStride];
  int32_t row_positions[kTileRows];
  int32_t query_positions[kTileCols];
};

struct IndexShared {
  RadixShared radix;
  int32_t warp_sums[32];
  uint64_t sum;
};

struct Unit {
  int32_t item, head, first;
};
__device__ __forceinline__ Unit unit_of(const DriftParams& p) {
  const int32_t unit = p.first_unit + static_cast<int32_t>(blockIdx.y);
  const int32_t per_item = p.num_heads * p.query_blocks;
  return {unit / per_item, unit % per_item / p.query_blocks, unit % p.query_blocks * p.unit_queries};
}

static_assert(fits_multiprocessor(sizeof(DriftShared), 9) && fits_multiprocessor(sizeof(IndexShared), 4));

__global__ void __launch_bounds__(kTileThreads, 9)
    drift_logits_kernel(const __grid_constant__ DriftParams p) {
  wait_for_previous();
  const Unit unit = unit_of(p);
  const ObserveView& item = p.items[unit.item];
  if (!item.drift_rows || unit.first >= item.queries.num_queries) return;
  const DeviceRows rows(item.rows, p.pool, unit.head / p.shape.group, p.shape.dim);
  const int32_t begin = static_cast<int32_t>(blockIdx.x) * kTileRows;
  if (begin >= rows.num_rows) return;
  const int32_t count = min(kTileRows, rows.num_rows - begin);
  DriftShared& shared = *shared_memory<DriftShared>();
  load_row_positions(rows, begin, count, shared.row_positions);
  load_query_positions(item.queries, unit.first, shared.query_positions);
  sync_threads();
  Patch logits;
  tile_logits(rows, item.queries, p.shape, unit.head, begin, count, unit.first, shared.row_positions,
              shared.query_positions, shared.row_tile, shared.column_tile, logits);
  uint32_t* out = p.logits + int64_t{blockIdx.y} * p.unit_queries * p.stride + begin;
#pragma unroll
  for (int32_t j = 0; j < 4; ++j) {
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      if (patch_row() + i < count && patch_col() + j < p.unit_queries)
        out[(patch_col() + j) * p.stride + patch_row() + i] = ordered_bits(logits[i][j]);
    }
  }
}

__global__ void __launch_bounds__(kIndexThreads, 4)
    drift_index_kernel(const __grid_constant__ DriftParams p) {
  wait_for_previous();
  const Unit unit = unit_of(p);
  const ObserveView& item = p.items[unit.item];
  const int32_t query = unit.first + static_cast<int32_t>(blockIdx.x);
  if (!item.drift_rows || query >= item.queries.num_queries) return;
  const int32_t kv_head = unit.head / p.shape.group;
  const DeviceRows rows(item.rows, p.pool, kv_head, p.shape.dim);
  IndexShared& shared = *shared_memory<IndexShared>();
  const uint32_t* logits = p.logits + (int64_t{blockIdx.y} * p.unit_queries + blockIdx.x) * p.stride;
  const int32_t n = rows.num_rows;
  const int32_t wanted = min(item.drift_rows[kv_head], n);
  float* out = item.mean_index + unit.head * item.stats_stride + query;
  if (wanted <= 0) {
    if (threadIdx.x == 0) *out = 0.0f;
    return;
  }
  if (threadIdx.x == 0) shared.sum = 0;
  const RadixResult<uint32_t> threshold = radix_select<uint32_t>(
      n, wanted, [&](int64_t i) { return logits[i]; }, shared.radix);
  uint64_t sum = 0;
  int32_t equal_left = static_cast<int32_t>(threshold.wanted);  // the newest of the equal ones
  for (int32_t end = n; end > 0; end -= kIndexThreads) {
    const int32_t row = end - 1 - static_cast<int32_t>(threadIdx.x);  // newest first
    const uint32_t value = row >= 0 ? logits[row] : 0;
    const bool is_equal = row >= 0 && value == threshold.value;
    int32_t total = 0;
    const int32_t newer = block_exclusive_sum(is_equal ? 1 : 0, shared.warp_sums, total);
    if (row >= 0 && (value > threshold.value || (is_equal && newer < equal_left)))
      sum += static_cast<uint64_t>(row);
    equal_left -= total;
  }
  atomic_add(&shared.sum, sum);
  sync_threads();
  if (threadIdx.x == 0) {
    *out = static_cast<float>(static_cast<double>(shared.sum) / static_cast<double>(wanted));
  }
}

}  // namespace

void observe_drift(Context& context, const ObserveArgs& args, std::span<const ObserveView> host_items,
                   const ObserveView* items, int32_t most) {
  int32_t most_queries = 0;
  for (const ObserveView& item : host_items) most_queries = std::max(most_queries, item.queries.num_queries);
  DriftParams params{};
  params.items = items;
  params.pool = pool_view(args.cache);
  params.shape = logit_shape(args.shape);
  params.num_heads = args.shape.num_heads;
  params.stride = std::max(1, most);
  // Very long prompts: fewer queries a unit, and their tiles computed again for the next ones.
  params.unit_queries = kTileCols;
  while (params.unit_queries > 1 &&
         params.unit_queries * params.stride * 4 > context.workspace_left() - 256) {
    params.unit_queries /= 2;
  }
  params.query_blocks = (most_queries + params.unit_queries - 1) / params.unit_queries;
  const int64_t per_unit = params.unit_queries * params.stride * 4;
  const int64_t units = static_cast<int64_t>(host_items.size()) * args.shape.num_heads * params.query_blocks;
  const int64_t batch = std::min<int64_t>({units, (context.workspace_left() - 256) / per_unit, 65535});
  CHECK(batch > 0) << "a workspace of " << context.workspace_left() << " bytes for " << per_unit;
  params.logits = reinterpret_cast<uint32_t*>(context.workspace<std::byte>(batch * per_unit));
  for (int64_t first = 0; first < units; first += batch) {
    params.first_unit = static_cast<int32_t>(first);
    const auto count = static_cast<uint32_t>(std::min(batch, units - first));
    if (most > 0) {
      launch(drift_logits_kernel, {.x = blocks_of(most, kTileRows), .y = count}, kTileThreads,
             sizeof(DriftShared), context.ready(), params);
    }
    launch(drift_index_kernel, {.x = static_cast<uint32_t>(params.unit_queries), .y = count}, kIndexThreads,
           sizeof(IndexShared), context.ready(), params);
  }
}

}  // namespace restkv::cuda
