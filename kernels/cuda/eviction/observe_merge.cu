// The partial results of observe's splits, merged in their order: the statistics of each query, its output o and that of the
// other rows o', projected as R_g (o - v_mean) and R_g (o' - v_mean), and the norm of R_g o where it is asked for.
// A block of 128 threads merges 8 queries of a unit (observe_parts.h): a thread holds 4 columns of one query while it adds the
// splits, then one column of the projections of all 8. What it waits for is asked for 8 splits or 16 rows of R_g at a time.
// Grid: (unit, 8 queries). Bound: latency of L2; it holds the partial results, 4*H*Q*D bytes a split. Shared memory 2 KiB and
// 24 * D floats: 14 KiB at D = 128.
// Occupancy: observe_merge_kernel 128 x 2.
#include "kernels/cuda/eviction/observe_parts.h"
#include "kernels/cuda/tile.h"

namespace restkv::cuda {
namespace {

constexpr int32_t kQueries = 8;  // of a block
constexpr int32_t kLoads = 8;    // splits on their way at once
constexpr int32_t kDepth = 16;   // rows of R_g on their way at once
constexpr int32_t kMostDim = 256;
static_assert(kTileCols % kQueries == 0);

struct MergeShared {
  float coefficient[kMaxSplits * kQueries];  // the split's top logit, then exp(it - m)
  float rests[kMaxSplits * kQueries];        // of the split
  int32_t tops[kMaxSplits * kQueries];       // the split's top row; then where it joins the rest, else -1
  float most[kQueries];                      // m
  int32_t top[kQueries];
  float rest[kQueries];
  float squares[kMostDim / 32][kQueries];  // of 32 columns of R_g o
  alignas(16) float x[4];                  // [2 or 3 outputs, 8, D rounded up to 16]
};
static_assert(fits_multiprocessor(sizeof(MergeShared) + 4 * 3 * kQueries * kMostDim, 2));

__device__ __forceinline__ int32_t padded_dim(int32_t dim) { return (dim + kDepth - 1) / kDepth * kDepth; }

// Queries t0 .. t0 + 7 of the unit's partial results from `base` on: coefficients, tops and rests of splits and queries.
__device__ __forceinline__ void merge_stats(const ObserveParams& p, const ObserveView& item, const Unit& unit,
                                            int64_t base, int32_t t0, int32_t splits, MergeShared& shared) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  for (int32_t i = thread; i < splits * kQueries; i += kTileThreads) {
    const int64_t at = base + i / kQueries;
    const int32_t t = t0 + i % kQueries;
    shared.coefficient[i] = p.stats[at * 2 * kTileCols + t];
    shared.rests[i] = p.stats[at * 2 * kTileCols + kTileCols + t];
    shared.tops[i] = p.tops[at * kTileCols + t];
  }
  sync_threads();
  if (thread < kQueries) {
    float most = -kInfinity;
    int32_t top = -1;
    for (int32_t s = 0; s < splits; ++s) {  // rising rows: the older of equal ones
      const float m = shared.coefficient[s * kQueries + thread];
      if (m > most) {
        most = m;
        top = shared.tops[s * kQueries + thread];
      }
    }
    shared.most[thread] = most;
    shared.top[thread] = top;
  }
  sync_threads();
  for (int32_t i = thread; i < splits * kQueries; i += kTileThreads) {
    const int32_t split_top = shared.tops[i], t = i % kQueries;
    const bool joins = split_top >= 0 && split_top != shared.top[t];
    // without a top the split saw nothing, or only NaN: its rest says which
    if (split_top >= 0) {
      const float c = expf(shared.coefficient[i] - shared.most[t]);
      shared.coefficient[i] = c;
      shared.rests[i] = c * (shared.rests[i] + (joins ? 1.0f : 0.0f));
    } else {
      shared.coefficient[i] = 0.0f;
    }
    shared.tops[i] = joins ? split_top : -1;
  }
  sync_threads();
  if (thread < kQueries) {
    float rest = 0.0f;
    for (int32_t s = 0; s < splits; ++s) rest += shared.rests[s * kQueries + thread];
    shared.rest[thread] = rest;
    const int32_t top = shared.top[thread], t = unit.first + t0 + thread;
    const bool is_blind = top < 0 && rest == rest;
    if (t < item.stats_cols) {
      const int64_t at = unit.head * item.stats_stride + t;
      const bool is_query = t < item.queries.num_queries;
      item.lse[at] = !is_query || is_blind ? kInfinity : shared.most[thread] + log1pf(rest);
      item.top[at] = is_query ? top : -1;
      item.rest[at] = is_query ? rest : 0.0f;
    }
  }
  sync_threads();
}

// x: all rows' mean output (o) less v_mean | the others' without the top row (o') less v_mean | o, as a third.
template <int32_t kOutputs>
__device__ __forceinline__ void merge_outputs(const ObserveParams& p, const ObserveView& item,
                                              const DeviceRows& rows, int64_t base, int32_t t0,
                                              int32_t splits, MergeShared& shared) {
  const int32_t dim = p.shape.dim, stride = padded_dim(dim), fours = stride / 4;
  const float* mean = item.v_mean + rows.head * item.mean_stride;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kQueries * fours; i += kTileThreads) {
    const int32_t t = i / fours, d = i % fours * 4;
    float full[4] = {}, others[4] = {}, centre[4] = {};
    if (d < dim) {
      float sum[4] = {};
      for (int32_t first = 0; first < splits; first += kLoads) {
        float4 part[kLoads];
        uint4 raw[kLoads];
        int32_t page[kLoads];
#pragma unroll
        for (int32_t j = 0; j < kLoads; ++j) {
          const int32_t s = min(first + j, splits - 1), row = shared.tops[s * kQueries + t];
          part[j] = load_vector<float4>(p.accs + ((base + s) * kTileCols + t0 + t) * dim + d);
          page[j] = row >= 0 ? rows.page_of(row) : 0;
        }
#pragma unroll
        for (int32_t j = 0; j < kLoads; ++j) {
          const int32_t s = min(first + j, splits - 1), row = shared.tops[s * kQueries + t];
          raw[j] = {0, 0, 0, 0};
          if (row >= 0) {
            const DType dtype = rows.dtype(row);
            raw[j] = load_raw_four(rows.at(row, page[j], true) + int64_t{d} * bytes_of_element(dtype), dtype);
          }
        }
#pragma unroll
        for (int32_t j = 0; j < kLoads; ++j) {
          if (first + j >= splits) continue;
          const int32_t at = (first + j) * kQueries + t;
          const float c = shared.coefficient[at];
          if (c == 0.0f) continue;  // it saw nothing, or NaN
          const float4 top = unpack_four(raw[j], rows.dtype(max(shared.tops[at], 0)));
          sum[0] += c * (part[j].x + top.x);
          sum[1] += c * (part[j].y + top.y);
          sum[2] += c * (part[j].z + top.z);
          sum[3] += c * (part[j].w + top.w);
        }
      }
      float4 top = {0.0f, 0.0f, 0.0f, 0.0f};
      if (const int32_t row = shared.top[t]; row >= 0) {
        const DType dtype = rows.dtype(row);
        top = load_four(rows.value(row) + int64_t{d} * bytes_of_element(dtype), dtype);
      }
      const float of_top[4] = {top.x, top.y, top.z, top.w};
      const float rest = shared.rest[t];
#pragma unroll
      for (int32_t j = 0; j < 4; ++j) {
        full[j] = (sum[j] + of_top[j]) / (1.0f + rest);
        others[j] = (rest > 0.0f ? sum[j] / rest : 0.0f) - mean[d + j];
        centre[j] = mean[d + j];
      }
    }
    float* x = shared.x + t * stride + d;
    store_vector(x,
                 float4{full[0] - centre[0], full[1] - centre[1], full[2] - centre[2], full[3] - centre[3]});
    store_vector(x + kQueries * stride, float4{others[0], others[1], others[2], others[3]});
    if constexpr (kOutputs == 3) {
      store_vector(x + 2 * kQueries * stride, float4{full[0], full[1], full[2], full[3]});
    }
  }
  sync_threads();
}

// Column e of R_g x for the 8 queries of each output, whole warps at a time. R_g is lower triangular, so rows from e on.
template <int32_t kOutputs>
__device__ __forceinline__ void project_outputs(const ObserveParams& p, const ObserveView& item,
                                                const Unit& unit, int32_t t0, MergeShared& shared) {
  constexpr int32_t kRows = kOutputs * kQueries;
  const int32_t dim = p.shape.dim, stride = padded_dim(dim);
  const int32_t padded = (item.queries.num_queries + 15) / 16 * 16;
  const float* r =
      item.projection ? item.projection + int64_t{unit.head} * dim * item.projection_stride : nullptr;
  float* out = item.p + int64_t{unit.head} * dim * item.p_stride;
  float* out_rest = item.p_rest + int64_t{unit.head} * dim * item.p_stride;
  for (int32_t e = static_cast<int32_t>(threadIdx.x); e < (dim + 31) / 32 * 32; e += kTileThreads) {
    float acc[kRows] = {};
    if (r) {
      float now[kDepth], next[kDepth];
      const auto load = [&](float(&to)[kDepth], int32_t d0) {
#pragma unroll
        for (int32_t k = 0; k < kDepth; ++k) {
          to[k] = d0 + k < dim && e < dim ? r[(d0 + k) * item.projection_stride + e] : 0.0f;
        }
      };
      load(now, e / 32 * 32);
      for (int32_t d0 = e / 32 * 32; d0 < dim; d0 += kDepth) {
        load(next, d0 + kDepth);
#pragma unroll
        for (int32_t k = 0; k < kDepth; k += 4) {
#pragma unroll
          for (int32_t i = 0; i < kRows; ++i) {
            const float4 x = load_vector<float4>(shared.x + i * stride + d0 + k);
            acc[i] += now[k] * x.x;
            acc[i] += now[k + 1] * x.y;
            acc[i] += now[k + 2] * x.z;
            acc[i] += now[k + 3] * x.w;
          }
        }
#pragma unroll
        for (int32_t k = 0; k < kDepth; ++k) now[k] = next[k];
      }
    } else if (e < dim) {
#pragma unroll
      for (int32_t i = 0; i < kRows; ++i) acc[i] = shared.x[i * stride + e];
    }
#pragma unroll
    for (int32_t i = 0; i < kQueries; ++i) {
      const int32_t t = unit.first + t0 + i;
      if (e < dim && t < padded) {
        const bool is_query = t < item.queries.num_queries;
        out[e * item.p_stride + t] = is_query ? acc[i] : 0.0f;
        out_rest[e * item.p_stride + t] = is_query ? acc[kQueries + i] : 0.0f;
      }
      if constexpr (kOutputs == 3) {
        const float square = warp_sum(acc[2 * kQueries + i] * acc[2 * kQueries + i]);
        if (lane_idx() == 0) shared.squares[e / 32][i] = square;
      }
    }
  }
  if constexpr (kOutputs == 3) {
    sync_threads();
    const int32_t i = static_cast<int32_t>(threadIdx.x), t = unit.first + t0 + i;
    if (i < kQueries && t < item.queries.num_queries) {
      float sum = 0.0f;
      for (int32_t c = 0; c < (dim + 31) / 32; ++c) sum += shared.squares[c][i];
      item.norm[unit.head * item.stats_stride + t] = sqrtf(sum);
    }
  }
}

// Outputs: 3 with norms, else 2.
template <int32_t kOutputs>
__global__ void __launch_bounds__(kTileThreads, 2)
    observe_merge_kernel(const __grid_constant__ ObserveParams p) {
  wait_for_previous();
  const Unit unit = unit_of(p, blockIdx.x);
  const ObserveView& item = p.items[unit.item];
  const int32_t t0 = static_cast<int32_t>(blockIdx.y) * kQueries;
  if (unit.first + t0 >= item.stats_cols) return;
  const DeviceRows rows(item.rows, p.pool, unit.head / p.shape.group, p.shape.dim);
  MergeShared& shared = *shared_memory<MergeShared>();
  const int32_t splits = num_splits(rows.num_rows);
  const int64_t base = int64_t{blockIdx.x} * p.max_splits;
  merge_stats(p, item, unit, base, t0, splits, shared);
  if (!p.with_values) return;
  merge_outputs<kOutputs>(p, item, rows, base, t0, splits, shared);
  project_outputs<kOutputs>(p, item, unit, t0, shared);
}

}  // namespace

void merge_observed(Context& context, const ObserveParams& params) {
  const int32_t dim = params.with_values ? (params.shape.dim + kDepth - 1) / kDepth * kDepth : 0;
  const auto start = [&]<int32_t kOutputs>() {
    launch(observe_merge_kernel<kOutputs>,
           {.x = static_cast<uint32_t>(params.num_units), .y = kTileCols / kQueries}, kTileThreads,
           static_cast<uint32_t>(sizeof(MergeShared) + 4 * kOutputs * kQueries * dim), context.ready(),
           params);
  };
  if (params.normalize) return start.template operator()<3>();
  start.template operator()<2>();
}

}  // namespace restkv::cuda
