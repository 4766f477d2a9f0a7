// kIndicatorAfter: attention of the rows before the window, smoothed over the queries first (restkv.md section 2).
//   a_j = ema or mean over t of a_tj;  ratio_j = a_j / (1 - a_j);  o = sum_j a_j v_j;  p = R_g (o - v_mean), column 0
// 1 - a is smoothed beside a, from the exact complement of each query's top row, so that it keeps its digits.
//   smooth_attention_kernel  grid (256 rows, head, item)  ratio, and the rows' part of o (in `partial`)
//   merge_output_kernel      grid (head, item)            o from its parts in rising order, projected
// Bound: f32 multiply-adds, 2*N*H*Q*D. The block is 128 threads: tiles of 64 rows x 32 queries; shared memory 14 KiB.
// Occupancy: smooth_attention_kernel 128 x 3, merge_output_kernel 128 x 12.
#include "kernels/cuda/eviction/observe_after.h"

namespace restkv::cuda {
namespace {

struct AfterParams {
  const ObserveView* items;
  PoolView pool;
  LogitShape shape;
  int32_t num_heads;
  int32_t is_ema;
  float alpha;
};

struct AfterShared {
  float row_tile[kTileRows * kRowStride];
  float column_tile[kTileDepth * kColStride];
  int32_t row_positions[kTileRows];
  int32_t query_positions[kTileCols];
  float attention[kTileRows];
  float weights[kTileCols];  // of a query in the mean or EMA, 0: padding or it sees nothing
  int32_t seen;              // queries of the block that see anything
};

// Weights of queries [first, first + 32) as in score.cu: an EMA is a weighted sum over the queries that see anything.
__device__ __forceinline__ void query_weights(const AfterParams& p, const ObserveView& item, int32_t head,
                                              int32_t first, int32_t seen_before, AfterShared& shared) {
  if (warp_idx() == 0) {
    const uint32_t lane = lane_idx();
    const int32_t t = first + static_cast<int32_t>(lane);
    const int64_t at = head * item.stats_stride + t;
    const bool is_seeing = t < item.queries.num_queries && !(item.lse[at] == kInfinity && item.top[at] < 0);
    const uint32_t seeing = ballot(is_seeing);
    float weight = is_seeing ? 1.0f : 0.0f;
    if (p.is_ema && is_seeing) {
      const bool is_oldest = seen_before == 0 && (seeing & ((1u << lane) - 1u)) == 0;
      weight = is_oldest ? 1.0f : p.alpha;
      for (uint32_t later = seeing >> lane >> 1; later != 0; later &= later - 1) weight *= 1.0f - p.alpha;
    }
    shared.weights[lane] = weight;
    if (lane == 0) {
      int32_t count = 0;
      for (uint32_t rest = seeing; rest != 0; rest &= rest - 1) ++count;
      shared.seen = count;
    }
  }
}

static_assert(fits_multiprocessor(sizeof(AfterShared), 3));

__global__ void __launch_bounds__(kTileThreads, 3)
    smooth_attention_kernel(const __grid_constant__ AfterParams p) {
  wait_for_previous();
  const ObserveView& item = p.items[blockIdx.z];
  const auto head = static_cast<int32_t>(blockIdx.y);
  const auto chunk = static_cast<int32_t>(blockIdx.x);
  const int32_t dim = p.shape.dim;
  const DeviceRows rows(item.rows, p.pool, head / p.shape.group, dim);
  const int32_t chunk_begin = chunk * Observation::kRowChunk;
  if (chunk_begin >= rows.num_rows) return;
  const int32_t scored = max(0, rows.num_rows - item.window_rows);
  const int32_t chunk_end = min(scored, chunk_begin + Observation::kRowChunk);
  AfterShared& shared = *shared_memory<AfterShared>();
  const auto thread = static_cast<int32_t>(threadIdx.x);
  float* ratio = item.ratio + head * item.ratio_stride;
  float outputs[2] = {0.0f, 0.0f};  // columns thread and thread + 128 of the chunk's part of o

  for (int32_t begin = chunk_begin; begin < chunk_end; begin += kTileRows) {
    const int32_t count = min(kTileRows, chunk_end - begin);
    load_row_positions(rows, begin, count, shared.row_positions);
    float a[4] = {0.0f, 0.0f, 0.0f, 0.0f}, complement[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    int32_t seen = 0;
    for (int32_t first = 0; first < item.queries.num_queries; first += kTileCols) {
      load_query_positions(item.queries, first, shared.query_positions);
      query_weights(p, item, head, first, seen, shared);
      sync_threads();
      Patch logits;
      tile_logits(rows, item.queries, p.shape, head, begin, count, first, shared.row_positions,
                  shared.query_positions, shared.row_tile, shared.column_tile, logits);
      float keep = 1.0f;  // what the older blocks' sums shrink by
      if (p.is_ema) {
        for (int32_t i = 0; i < shared.seen; ++i) keep *= 1.0f - p.alpha;
      }
      float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f}, sum_without[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
      for (int32_t j = 0; j < 4; ++j) {
        const float weight = shared.weights[patch_col() + j];
        if (weight == 0.0f) continue;
        const int64_t at = head * item.stats_stride + first + patch_col() + j;
        const float rest = item.rest[at], lse = item.lse[at];
        const float a_top = 1.0f / (1.0f + rest);
        const int32_t top = rest < 1.0f ? item.top[at] - begin - patch_row() : -1;
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
          const float now = top == i ? a_top : expf(logits[i][j] - lse);
          sum[i] += weight * now;
          sum_without[i] += weight * (top == i ? rest * a_top : 1.0f - now);
        }
      }
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
#pragma unroll
        for (uint32_t bits = 1; bits < 8; bits *= 2) {
          sum[i] += shuffle_xor(sum[i], bits);
          sum_without[i] += shuffle_xor(sum_without[i], bits);
        }
        a[i] = (seen > 0 ? a[i] * keep : 0.0f) + sum[i];
        complement[i] = (seen > 0 ? complement[i] * keep : 0.0f) + sum_without[i];
      }
      seen += shared.seen;
      sync_threads();  // weights and positions are written again
    }
    if (patch_col() == 0) {
      const float scale = p.is_ema || seen == 0 ? 1.0f : 1.0f / static_cast<float>(seen);
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
        const int32_t r = patch_row() + i;
        if (r >= count) continue;
        shared.attention[r] = a[i] * scale;
        ratio[begin + r] = a[i] == 0.0f ? 0.0f : a[i] / complement[i];
      }
    }
    sync_threads();
#pragma unroll
    for (int32_t c = 0; c < 2; ++c) {
      const int32_t d = thread + c * kTileThreads;
      if (d >= dim) continue;
      for (int32_t r = 0; r < count; ++r) {
        const DType dtype = rows.dtype(begin + r);
        outputs[c] += shared.attention[r] *
                      load_one(rows.value(begin + r) + int64_t{d} * bytes_of_element(dtype), dtype);
      }
    }
    sync_threads();
  }
  float* partial = item.partial + (int64_t{chunk} * p.num_heads + head) * dim;
#pragma unroll
  for (int32_t c = 0; c < 2; ++c) {
    const int32_t d = thread + c * kTileThreads;
    if (d < dim) partial[d] = outputs[c];
  }
}

__global__ void __launch_bounds__(kTileThreads, 12)
    merge_output_kernel(const __grid_constant__ AfterParams p) {
  wait_for_previous();
  const ObserveView& item = p.items[blockIdx.y];
  const auto head = static_cast<int32_t>(blockIdx.x);
  const int32_t dim = p.shape.dim;
  const DeviceRows rows(item.rows, p.pool, head / p.shape.group, dim);
  const int32_t chunks = (rows.num_rows + Observation::kRowChunk - 1) / Observation::kRowChunk;
  const int32_t padded = (item.queries.num_queries + 15) / 16 * 16;
  float* o = shared_memory<float>();  // [D], less v_mean
  const auto thread = static_cast<int32_t>(threadIdx.x);
  for (int32_t d = thread; d < dim; d += kTileThreads) {
    float sum = 0.0f;
    for (int32_t chunk = 0; chunk < chunks; ++chunk) {
      sum += item.partial[(int64_t{chunk} * p.num_heads + head) * dim + d];
    }
    o[d] = sum - item.v_mean[rows.head * item.mean_stride + d];
  }
  sync_threads();
  for (int32_t e = thread; e < dim; e += kTileThreads) {
    float sum = o[e];
    if (item.projection) {
      const float* r = item.projection + int64_t{head} * dim * item.projection_stride;
      sum = 0.0f;
      for (int32_t d = e; d < dim; ++d) sum += o[d] * r[d * item.projection_stride + e];
    }
    float* p_row = item.p + (int64_t{head} * dim + e) * item.p_stride;
    p_row[0] = sum;
    for (int32_t t = 1; t < padded && t < 16; ++t) p_row[t] = 0.0f;
  }
}

}  // namespace

void observe_after(Context& context, const ObserveArgs& args, const ObserveView* items, int32_t most) {
  const AfterParams params{.items = items,
                           .pool = pool_view(args.cache),
                           .shape = logit_shape(args.shape),
                           .num_heads = args.shape.num_heads,
                           .is_ema = args.spec.reduce == QueryReduce::kEma,
                           .alpha = args.spec.alpha};
  const auto heads = static_cast<uint32_t>(args.shape.num_heads);
  const auto num_items = static_cast<uint32_t>(args.items.size());
  if (most > 0) {
    launch(smooth_attention_kernel,
           {.x = blocks_of(most, Observation::kRowChunk), .y = heads, .z = num_items}, kTileThreads,
           sizeof(AfterShared), context.ready(), params);
  }
  launch(merge_output_kernel, {.x = heads, .y = num_items}, kTileThreads,
         static_cast<uint32_t>(4 * args.shape.head_dim), context.ready(), params);
}

}  // namespace restkv::cuda
