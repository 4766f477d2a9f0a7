// The partial results of observe's splits, merged in a fixed order: the statistics of each query, its output o and that of the
// other rows o', projected as R_g (o - v_mean) and R_g (o' - v_mean), and the norm of R_g o where it is asked for.
// A block of 8 warps merges 4 queries of a unit (observe_parts.h). A lane of warps 0 to 3 has a split's statistics of one query;
// for the outputs two warps share a query, each with half of the splits and a lane for 4 columns; for the projections two share 32
// columns of R_g, each with every other 16 rows. Everything is asked for as soon as its address is known: the partial outputs and
// the first rows of R_g before the statistics are merged. Few tops' values are read: observe_mma.cu leaves most in acc.
// Grid: (unit, 4 queries). Bound: latency of L2, which holds the partial results, 4*H*Q*D bytes a split. Shared memory 8 KiB and
// 8 * D floats (12 * D with norms): 12 KiB at D = 128.
// Occupancy: observe_merge_kernel 256 x 2.
#include "kernels/cuda/eviction/observe_parts.h"
#include "kernels/cuda/tile.h"

namespace restkv::cuda {
namespace {

constexpr int32_t kThreads = 256;
constexpr int32_t kQueries = 4;             // of a block
constexpr int32_t kShare = kMaxSplits / 2;  // splits of one warp of two
constexpr int32_t kDepth = 16;              // rows of R_g on their way at once
constexpr int32_t kColumnBlocks = 4;        // of 32 columns of R_g at a time
constexpr int32_t kMostDim = 256;
static_assert(kMaxSplits % 2 == 0 && kTileCols % kQueries == 0 && kThreads == 2 * 32 * kQueries &&
              kQueries == kColumnBlocks);

struct MergeShared {
  const std::byte*
      values[kQueries][kMaxSplits];  // of the split's top where acc lacks it and it joins the rest, else null
  const std::byte* top_value[kQueries];     // of the top row of all, null: none
  float coefficient[kQueries][kMaxSplits];  // exp(the split's top logit - m); 0 where it has none
  int32_t tops[kQueries][kMaxSplits];       // rows
  float rest[kQueries];
  int32_t top[kQueries];                   // kTopIsIn, as in the split's
  float squares[kMostDim / 32][kQueries];  // of 32 columns of R_g o
  // the second warp's sums: of outputs [4 queries, 128], then of projections [4 column blocks, 32, 8 or 12]
  alignas(16) float halves[kColumnBlocks * 32 * 3 * kQueries];
  alignas(16) float x[4];  // [2 or 3 outputs, 4, D rounded up to 16]
};
static_assert(fits_multiprocessor(sizeof(MergeShared) + 4 * 3 * kQueries * kMostDim, 2));

__device__ __host__ __forceinline__ int32_t padded_dim(int32_t dim) {
  return (dim + kDepth - 1) / kDepth * kDepth;
}

// Query t0 + warp_idx() of the unit, by one warp: a lane for each split.
__device__ __forceinline__ void merge_stats(const ObserveParams& p, const ObserveView& item,
                                            const DeviceRows& rows, const Unit& unit, int64_t base,
                                            int32_t t0, int32_t splits, MergeShared& shared) {
  const auto lane = static_cast<int32_t>(lane_idx()), i = static_cast<int32_t>(warp_idx());
  float logit = -kInfinity, part = 0.0f;
  int32_t top = -1;
  if (lane < splits) {
    const int64_t at = base + lane;
    const float* stats = p.stats + at * 2 * kTileCols + t0 + i;
    logit = load_vector<float>(stats);
    part = load_vector<float>(stats + kTileCols);
    top = p.tops[at * kTileCols + t0 + i];
  }
  const float most = warp_max(logit);
  // Rising rows: the older of equal ones. Without a top a split saw nothing, or only NaN: its rest says which.
  const uint32_t largest = ballot(top >= 0 && logit == most);
  const auto best = largest == 0 ? -1 : 31 - static_cast<int32_t>(leading_zeros(largest & (0u - largest)));
  const bool joins = top >= 0 && lane != best;
  const float coefficient = top >= 0 ? expf(logit - most) : 0.0f;
  if (top >= 0) part = coefficient * (part + (joins ? 1.0f : 0.0f));
  const float rest = warp_sum(part);
  const int32_t row = top & ~kTopIsIn;
  const bool is_asked = p.with_values && top >= 0 && (lane == best || (top & kTopIsIn) == 0);
  const std::byte* value = is_asked ? rows.value(row) : nullptr;
  if (lane < kMaxSplits) {
    shared.values[i][lane] = joins && coefficient != 0.0f ? value : nullptr;
    shared.tops[i][lane] = row;
    shared.coefficient[i][lane] = coefficient;
  }
  if (lane == max(best, 0)) {
    shared.top[i] = top;
    shared.top_value[i] = value;
    shared.rest[i] = rest;
    const int32_t t = unit.first + t0 + i;
    const bool is_query = t < item.queries.num_queries, is_blind = best < 0 && rest == rest;
    const int64_t at = unit.head * item.stats_stride + t;
    item.lse[at] = !is_query || is_blind ? kInfinity : most + log1pf(rest);
    item.top[at] = !is_query || best < 0 ? -1 : row;
    item.rest[at] = is_query ? rest : 0.0f;
  }
}

__device__ __forceinline__ float4 value_at(const DeviceRows& rows, const std::byte* value, int32_t row,
                                           int32_t d) {
  const DType dtype = rows.dtype(row);
  return load_four(value + int64_t{d} * bytes_of_element(dtype), dtype);
}

// One warp's half of the splits of a query, 4 columns from d on.
struct Parts {
  float4 part[kShare];

  __device__ __forceinline__ void load(const float* accs, int32_t stride, int32_t count) {
#pragma unroll
    for (int32_t j = 0; j < kShare; ++j) {
      part[j] = {0.0f, 0.0f, 0.0f, 0.0f};
      if (j < count) part[j] = load_vector<float4>(accs + j * stride);
    }
  }
  // coefficients * (parts + the tops' values)
  __device__ __forceinline__ float4 sum(const DeviceRows& rows, const MergeShared& shared, int32_t i,
                                        int32_t first, int32_t d, int32_t count) const {
    float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int32_t j = 0; j < kShare; ++j) {
      if (j >= count) continue;
      const float c = shared.coefficient[i][first + j];
      if (c == 0.0f) continue;  // it saw nothing, or NaN
      sum.x += c * part[j].x;
      sum.y += c * part[j].y;
      sum.z += c * part[j].z;
      sum.w += c * part[j].w;
    }
#pragma unroll 1
    for (int32_t s = first; s < first + min(count, kShare); ++s) {
      const std::byte* value = shared.values[i][s];
      if (!value) continue;
      const float c = shared.coefficient[i][s];
      const float4 v = value_at(rows, value, shared.tops[i][s], d);
      sum.x += c * v.x;
      sum.y += c * v.y;
      sum.z += c * v.z;
      sum.w += c * v.w;
    }
    return sum;
  }
};

// x: all rows' mean output (o) less v_mean | the others' without the top row (o') less v_mean | o, as a third. Columns d .. d + 3 of
// query i, `sum` of all splits.
template <int32_t kOutputs>
__device__ __forceinline__ void store_outputs(const ObserveView& item, const DeviceRows& rows, int32_t i,
                                              int32_t d, float4 sum, MergeShared& shared) {
  const int32_t stride = padded_dim(rows.dim);
  float full[4] = {}, others[4] = {}, centre[4] = {};
  if (d < rows.dim) {
    const float* mean = item.v_mean + rows.head * item.mean_stride + d;
    const std::byte* value = shared.top_value[i];
    const int32_t top = shared.top[i];
    const float rest = shared.rest[i];
    const float4 of_top = value ? value_at(rows, value, top & ~kTopIsIn, d) : float4{0.0f, 0.0f, 0.0f, 0.0f};
    const float sums[4] = {sum.x, sum.y, sum.z, sum.w};
    const float tops[4] = {of_top.x, of_top.y, of_top.z, of_top.w};
    const bool is_in = (top & kTopIsIn) != 0;
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) {
      centre[j] = mean[j];
      full[j] = (is_in ? sums[j] : sums[j] + tops[j]) / (1.0f + rest);
      others[j] = (rest > 0.0f ? (is_in ? sums[j] - tops[j] : sums[j]) / rest : 0.0f) - centre[j];
    }
  }
  float* x = shared.x + i * stride + d;
  store_vector(x, float4{full[0] - centre[0], full[1] - centre[1], full[2] - centre[2], full[3] - centre[3]});
  store_vector(x + kQueries * stride, float4{others[0], others[1], others[2], others[3]});
  if constexpr (kOutputs == 3) {
    store_vector(x + 2 * kQueries * stride, float4{full[0], full[1], full[2], full[3]});
  }
}

// 16 rows of column e of R_g from d0 on; 0 where it has none.
struct Factors {
  float now[kDepth];

  __device__ __forceinline__ void load(const float* r, int32_t stride, int32_t dim, int32_t e, int32_t d0) {
    const float* at = r + (d0 * stride + e);
    const int32_t rows = e < dim ? dim - d0 : 0;
#pragma unroll
    for (int32_t k = 0; k < kDepth; ++k, at += stride) now[k] = k < rows ? *at : 0.0f;
  }
};

// Column e of R_g x for the queries of each output, whole warps at a time. R_g is lower triangular, so rows from e on; the second
// warp of a block of columns has every other 16 of them. `factors`: the warp's first.
template <int32_t kOutputs>
__device__ __forceinline__ void project_outputs(const ObserveParams& p, const ObserveView& item,
                                                const Unit& unit, int32_t t0, const float* r,
                                                Factors& factors, MergeShared& shared) {
  constexpr int32_t kRows = kOutputs * kQueries, kColumns = 32 * kColumnBlocks;
  const auto lane = static_cast<int32_t>(lane_idx()), warp = static_cast<int32_t>(warp_idx());
  const int32_t dim = p.shape.dim, stride = padded_dim(dim), half = warp / kColumnBlocks;
  const int32_t place = warp % kColumnBlocks * 32 + lane;              // of its column among those at a time
  const auto r_stride = static_cast<int32_t>(item.projection_stride);  // of [D, D] of a head: small
  const int32_t num_queries = item.queries.num_queries, padded = (num_queries + 15) / 16 * 16;
  const int32_t t = unit.first + t0;
#pragma unroll 1
  for (int32_t e0 = 0; e0 < dim; e0 += kColumns) {
    const int32_t e = e0 + place;
    float acc[kRows] = {};
    if (r) {
      int32_t d0 = e - lane + half * kDepth;
      if (e0 > 0) factors.load(r, r_stride, dim, e, d0);
#pragma unroll 1
      for (; d0 < dim; d0 += 2 * kDepth) {
        const Factors now = factors;
        factors.load(r, r_stride, dim, e, d0 + 2 * kDepth);
#pragma unroll
        for (int32_t k = 0; k < kDepth; k += 4) {
#pragma unroll
          for (int32_t i = 0; i < kRows; ++i) {
            const float4 x = load_vector<float4>(shared.x + i * stride + d0 + k);
            acc[i] += now.now[k] * x.x;
            acc[i] += now.now[k + 1] * x.y;
            acc[i] += now.now[k + 2] * x.z;
            acc[i] += now.now[k + 3] * x.w;
          }
        }
      }
    } else if (e < dim && half == 0) {
#pragma unroll
      for (int32_t i = 0; i < kRows; ++i) acc[i] = shared.x[i * stride + e];
    }
    if (half == 1) {
#pragma unroll
      for (int32_t i = 0; i < kRows; ++i) shared.halves[i * kColumns + place] = acc[i];
    }
    sync_threads();
    if (half == 0) {
#pragma unroll
      for (int32_t i = 0; i < kRows; ++i) acc[i] += shared.halves[i * kColumns + place];
#pragma unroll
      for (int32_t i = 0; i < kQueries; ++i) {
        if constexpr (kOutputs == 3) {
          const float square = warp_sum(acc[2 * kQueries + i] * acc[2 * kQueries + i]);
          if (lane == 0 && e < dim) shared.squares[e / 32][i] = square;
        }
        if (t + i >= num_queries) acc[i] = acc[kQueries + i] = 0.0f;
      }
      if (e < dim && t < padded) {
        const int64_t at = (int64_t{unit.head} * dim + e) * item.p_stride + t;
        store_vector(item.p + at, float4{acc[0], acc[1], acc[2], acc[3]});
        store_vector(item.p_rest + at, float4{acc[4], acc[5], acc[6], acc[7]});
      }
    }
    sync_threads();
  }
  if constexpr (kOutputs == 3) {
    const auto i = static_cast<int32_t>(threadIdx.x);
    if (i < kQueries && t + i < num_queries) {
      float sum = 0.0f;
      for (int32_t c = 0; c < (dim + 31) / 32; ++c) sum += shared.squares[c][i];
      item.norm[unit.head * item.stats_stride + t + i] = sqrtf(sum);
    }
  }
}

// Outputs: 3 with norms, else 2.
template <int32_t kOutputs>
__global__ void __launch_bounds__(kThreads, 2) observe_merge_kernel(const __grid_constant__ ObserveParams p) {
  wait_for_previous();
  const Unit unit = unit_of(p, blockIdx.x);
  const ObserveView& item = p.items[unit.item];
  const int32_t t0 = static_cast<int32_t>(blockIdx.y) * kQueries;
  if (unit.first + t0 >= item.stats_cols) return;
  const RowsView source = item.rows;  // a copy, which no barrier makes it read again
  const int32_t dim = p.shape.dim;
  const DeviceRows rows(source, p.pool, unit.head / p.shape.group, dim);
  MergeShared& shared = *shared_memory<MergeShared>();
  const int32_t splits = num_splits(rows.num_rows);
  const int64_t base = int64_t{blockIdx.x} * p.max_splits;
  const auto lane = static_cast<int32_t>(lane_idx()), warp = static_cast<int32_t>(warp_idx());
  if (!p.with_values) {
    if (warp < kQueries) merge_stats(p, item, rows, unit, base, t0, splits, shared);
    return;
  }
  const int32_t i = warp % kQueries, half = warp / kQueries, first = half * kShare;
  const int32_t count = splits - first;  // of this warp's, at most kShare are
  const float* accs = p.accs + ((base + first) * kTileCols + t0 + i) * dim;
  Parts parts;
  parts.load(accs + 4 * lane, kTileCols * dim, 4 * lane < dim ? count : 0);
  const float* r =
      item.projection ? item.projection + int64_t{unit.head} * dim * item.projection_stride : nullptr;
  Factors factors{};
  const int32_t block = warp % kColumnBlocks * 32;
  if (r)
    factors.load(r, static_cast<int32_t>(item.projection_stride), dim, block + lane, block + half * kDepth);
  if (warp < kQueries) merge_stats(p, item, rows, unit, base, t0, splits, shared);
  sync_threads();
#pragma unroll 1
  for (int32_t d0 = 0; d0 < padded_dim(dim); d0 += 128) {
    const int32_t d = d0 + 4 * lane;
    if (d0 > 0) parts.load(accs + d, kTileCols * dim, d < dim ? count : 0);
    float4 sum = parts.sum(rows, shared, i, first, d, d < dim ? count : 0);
    float* other = shared.halves + i * 128 + 4 * lane;
    if (half == 1) store_vector(other, sum);
    sync_threads();
    if (half == 0 && d < padded_dim(dim)) {
      const float4 more = load_vector<float4>(other);
      sum = {sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w};
      store_outputs<kOutputs>(item, rows, i, d, sum, shared);
    }
    sync_threads();
  }
  project_outputs<kOutputs>(p, item, unit, t0, r, factors, shared);
}

}  // namespace

void merge_observed(Context& context, const ObserveParams& params) {
  const int32_t dim = params.with_values ? padded_dim(params.shape.dim) : 0;
  const auto start = [&]<int32_t kOutputs>() {
    launch(observe_merge_kernel<kOutputs>,
           {.x = static_cast<uint32_t>(params.num_units), .y = kTileCols / kQueries}, kThreads,
           static_cast<uint32_t>(sizeof(MergeShared) + 4 * kOutputs * kQueries * dim), context.ready(),
           params);
  };
  if (params.normalize) return start.template operator()<3>();
  start.template operator()<2>();
}

}  // namespace restkv::cuda
