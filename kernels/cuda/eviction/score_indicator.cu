// score for kIndicatorQuery where rows and queries are of one 16-bit type (formulas: score.cu), on tensor cores:
//   logits   K Q^T, products of the type itself
//   u_j      R_g (v_j - v_mean) as three products of bf16 halves, x = high + low: high high + low high + high low, which keeps 16
//            bits of either factor; without a projection v_j - v_mean itself
//   distance ||p_t - u_j||^2 value by value in f32 (the expanded form loses its digits on sinks)
// A block of four warps owns 64 rows of one KV head, each warp 16 of them; K, V and the queries of a head lie in shared memory,
// R_g and p pass through it 32 columns at a time, the next 32 on their way in registers meanwhile. A lane holds logits and sums
// of 2 rows x 8 queries in the places of the mma's accumulators; the partial distances of its own columns are exchanged among the
// four lanes of a row at the end. Sums over queries are in a fixed order, so neighbours in the batch change no bit.
// Grid: (64 rows, KV head, item). Bound: f32 additions of the distances, 2*N*H*Q*D, then the products. Shared memory at
// D = 128: 90 KiB: 2 blocks of sm_90, 1 of sm_80 and sm_86.
// Occupancy: score_indicator_kernel 128 x 2.
#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/eviction/half_type.h"
#include "kernels/cuda/eviction/score_view.h"

namespace restkv::cuda {
namespace {

constexpr int32_t kMaxDim = 128;
constexpr int32_t kChunk = 32;              // columns of R_g and p at a time
constexpr int32_t kChunkRow = kChunk + 8;   // of R_g in shared memory: ldmatrix without bank conflicts
constexpr int32_t kOutputRow = kChunk + 4;  // of p
constexpr int32_t kQueryTiles = kTileCols / 8;
static_assert(kTileRows == kTileThreads / 32 * 16, "a warp owns 16 rows");

template <class T, int32_t kDim>
struct IndicatorShared {
  static constexpr int32_t kRow = kDim + 8;
  T keys[kTileRows * kRow];
  T queries[kTileCols * kRow];
  bf16 values_high[kTileRows * kRow];  // of v - v_mean
  bf16 values_low[kTileRows * kRow];
  bf16 projection_high[kDim * kChunkRow];  // [d, e]
  bf16 projection_low[kDim * kChunkRow];
  float outputs[kTileCols * kOutputRow];  // p: [query, e]
  float others[kTileCols * kOutputRow];   // p_rest
  int32_t row_positions[kTileRows];
  int32_t query_positions[kTileCols];
  float weights[kTileCols];  // of a query in the reduction, 0: skipped
  float lse[kTileCols];
  float rest[kTileCols];
  float norm[kTileCols];
  int32_t
      top[kTileCols];  // row of the tile that holds more than half of the query's attention; -1: none here
  uint32_t is_scored;  // some row is
  uint32_t has_top;    // some query has its top here
};
static_assert(sizeof(IndicatorShared<bf16, kMaxDim>) <= (99u << 10), "sm_86");
static_assert(2 * (sizeof(IndicatorShared<bf16, kMaxDim>) + 1024) <= (228u << 10), "2 blocks of sm_90");
static_assert(fits_multiprocessor(sizeof(IndicatorShared<bf16, kMaxDim>), 1));

__device__ __forceinline__ void split(float x, bf16& high, bf16& low) {
  high = from_f32<bf16>(x);
  low = from_f32<bf16>(x - to_f32(high));
}

__device__ __forceinline__ uint32_t pair_of(bf16 low, bf16 high) {
  return uint32_t{low.bits} | uint32_t{high.bits} << 16;
}

// K as it is, V less its mean in halves; zeros outside of [0, count) x [0, D). A thread has the same 8 columns of every
// kTileThreads / kPieces-th row.
template <class T, int32_t kDim>
__device__ __forceinline__ void load_rows(const DeviceRows& rows, const float* mean, int32_t begin,
                                          int32_t count, IndicatorShared<T, kDim>& shared) {
  constexpr int32_t kRow = IndicatorShared<T, kDim>::kRow, kPieces = kDim / 8;
  constexpr int32_t kStep = kTileThreads / kPieces, kEach = kTileRows / kStep;
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t first = thread / kPieces, c = thread % kPieces * 8;
  const bool has_columns = c < rows.dim;
  int32_t pages[kEach];
  rows.pages_of(begin + first, kStep, pages);
  uint4 keys[kEach], values[kEach];
#pragma unroll
  for (int32_t u = 0; u < kEach; ++u) {
    const int32_t r = first + u * kStep;
    keys[u] = values[u] = {0, 0, 0, 0};
    if (r >= count || !has_columns) continue;
    keys[u] = load_vector<uint4>(rows.at(begin + r, pages[u], false) + int64_t{2} * c);
    values[u] = load_vector<uint4>(rows.at(begin + r, pages[u], true) + int64_t{2} * c);
  }
  float means[8];
#pragma unroll
  for (int32_t j = 0; j < 8; ++j) means[j] = has_columns ? mean[c + j] : 0.0f;
#pragma unroll
  for (int32_t u = 0; u < kEach; ++u) {
    const int32_t r = first + u * kStep;
    store_vector(shared.keys + r * kRow + c, keys[u]);
    const uint32_t pairs[4] = {values[u].x, values[u].y, values[u].z, values[u].w};
    uint32_t highs[4], lows[4];
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) {
      const float2 x = unpack2<T>(pairs[j]);
      bf16 high[2], low[2];
      split(r < count ? x.x - means[2 * j] : 0.0f, high[0], low[0]);
      split(r < count ? x.y - means[2 * j + 1] : 0.0f, high[1], low[1]);
      highs[j] = pair_of(high[0], high[1]);
      lows[j] = pair_of(low[0], low[1]);
    }
    store_vector(shared.values_high + r * kRow + c, uint4{highs[0], highs[1], highs[2], highs[3]});
    store_vector(shared.values_low + r * kRow + c, uint4{lows[0], lows[1], lows[2], lows[3]});
  }
}

// Queries [first, first + 32) of a head, whose positions are in shared memory, and what observe found of them.
template <class T, int32_t kDim>
__device__ __forceinline__ void load_head_queries(const ScoreParams& p, const ScoreView& item, int32_t head,
                                                  int32_t begin, int32_t first,
                                                  IndicatorShared<T, kDim>& shared) {
  constexpr int32_t kRow = IndicatorShared<T, kDim>::kRow, kPieces = kDim / 8;
  constexpr int32_t kStep = kTileThreads / kPieces, kEach = kTileCols / kStep;
  const int32_t own = static_cast<int32_t>(threadIdx.x) / kPieces;
  const int32_t c = static_cast<int32_t>(threadIdx.x) % kPieces * 8;
  const QueriesView& queries = item.queries;
  const std::byte* from[kEach];
  if (queries.rows) {
#pragma unroll
    for (int32_t u = 0; u < kEach; ++u)
      from[u] =
          queries.rows + (first + own + u * kStep) * queries.row_bytes + int64_t{2} * head * p.shape.dim;
  } else {
    const int32_t* ring_pages = queries.ring_pages + int64_t{head / p.shape.group} * queries.ring_stride;
    const int32_t rows_per_page = 2 * p.pool.slots;
    int32_t rows[kEach], pages[kEach];
#pragma unroll
    for (int32_t u = 0; u < kEach; ++u) {  // beyond the last query the position is 0
      rows[u] = shared.query_positions[own + u * kStep] % queries.ring_window * p.shape.group +
                head % p.shape.group;
      pages[u] = ring_pages[rows[u] / rows_per_page];
    }
#pragma unroll
    for (int32_t u = 0; u < kEach; ++u)
      from[u] =
          p.pool.pool + p.pool.page_bytes * pages[u] + int64_t{2} * (rows[u] % rows_per_page) * p.shape.dim;
  }
  uint4 pieces[kEach];
#pragma unroll
  for (int32_t u = 0; u < kEach; ++u) {
    pieces[u] = {0, 0, 0, 0};
    if (first + own + u * kStep < queries.num_queries && c < p.shape.dim)
      pieces[u] = load_vector<uint4>(from[u] + int64_t{2} * c);
  }
#pragma unroll
  for (int32_t u = 0; u < kEach; ++u) store_vector(shared.queries + (own + u * kStep) * kRow + c, pieces[u]);
  if (threadIdx.x < kTileCols) {
    const auto t = static_cast<int32_t>(threadIdx.x);
    const bool is_there = first + t < item.queries.num_queries;
    const int64_t at = head * item.stats_stride + first + t;
    const float rest = is_there ? item.rest[at] : 1.0f;
    const int32_t top = is_there && rest < 1.0f ? item.top[at] - begin : -1;
    const bool is_here = top >= 0 && top < kTileRows;
    shared.lse[t] = is_there ? item.lse[at] : kInfinity;
    shared.rest[t] = rest;
    shared.norm[t] = is_there && p.normalize ? item.norm[at] : 1.0f;
    shared.top[t] = is_here ? top : -1;
    if (is_here) atomic_or(&shared.has_top, 1u);
  }
}

// A thread's part of columns [e0, e0 + 32) of R_g, rows from e0 on (the others are zero), and of p, on the way from global
// memory while the columns before are computed with.
template <int32_t kDim>
struct ChunkParts {
  static constexpr int32_t kRowStep = kTileThreads * 4 / kChunk;    // a thread has 4 columns of R_g
  static constexpr int32_t kColumnStep = kTileThreads / kTileCols;  // and one query of p
  float4 projection[kDim / kRowStep];
  float outputs[kChunk / kColumnStep];
};

__device__ __forceinline__ int32_t chunk_row() { return static_cast<int32_t>(threadIdx.x) / (kChunk / 4); }
__device__ __forceinline__ int32_t chunk_column() {
  return static_cast<int32_t>(threadIdx.x) % (kChunk / 4) * 4;
}

// out: the thread's columns of p or p_rest, of its query.
template <int32_t N>
__device__ __forceinline__ void fetch_outputs(const float* p, int64_t p_stride, int32_t num_queries,
                                              int32_t head, int32_t dim, int32_t first, int32_t e0,
                                              float (&out)[N]) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t t = first + thread % kTileCols;
#pragma unroll
  for (int32_t u = 0; u < N; ++u) {
    const int32_t e = e0 + thread / kTileCols + u * (kChunk / N);
    out[u] = e < dim && t < num_queries ? p[(int64_t{head} * dim + e) * p_stride + t] : 0.0f;
  }
}

template <int32_t kDim>
__device__ __forceinline__ void fetch_chunk(const ScoreParams& p, const ScoreView& item, int32_t head,
                                            int32_t first, int32_t e0, ChunkParts<kDim>& parts) {
  const int32_t dim = p.shape.dim;
  if (item.projection) {
    const int32_t e = e0 + chunk_column();
    const float* r = item.projection + int64_t{head} * dim * item.projection_stride + e;
#pragma unroll
    for (int32_t u = 0; u < kDim / ChunkParts<kDim>::kRowStep; ++u) {
      const int32_t d = e0 + chunk_row() + u * ChunkParts<kDim>::kRowStep;
      parts.projection[u] = {0.0f, 0.0f, 0.0f, 0.0f};
      if (d < dim && e < dim) parts.projection[u] = load_vector<float4>(r + d * item.projection_stride);
    }
  }
  fetch_outputs(item.p, item.p_stride, item.queries.num_queries, head, dim, first, e0, parts.outputs);
}

// The parts of all threads to shared memory, R_g in halves; p_rest where a query has its top here.
template <class T, int32_t kDim>
__device__ __forceinline__ void store_chunk(const ScoreParams& p, const ScoreView& item, int32_t head,
                                            int32_t first, int32_t e0, const ChunkParts<kDim>& parts,
                                            IndicatorShared<T, kDim>& shared) {
  using Parts = ChunkParts<kDim>;
  if (item.projection) {
#pragma unroll
    for (int32_t u = 0; u < kDim / Parts::kRowStep; ++u) {
      const int32_t d = e0 + chunk_row() + u * Parts::kRowStep;
      if (d >= kDim) continue;
      const float4 x = parts.projection[u];
      bf16 high[4], low[4];
      split(x.x, high[0], low[0]);
      split(x.y, high[1], low[1]);
      split(x.z, high[2], low[2]);
      split(x.w, high[3], low[3]);
      const int32_t at = d * kChunkRow + chunk_column();
      store_vector(shared.projection_high + at, uint2{pair_of(high[0], high[1]), pair_of(high[2], high[3])});
      store_vector(shared.projection_low + at, uint2{pair_of(low[0], low[1]), pair_of(low[2], low[3])});
    }
  }
  constexpr int32_t kOutputs = kChunk / Parts::kColumnStep;
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t at = thread % kTileCols * kOutputRow + thread / kTileCols;
#pragma unroll
  for (int32_t u = 0; u < kOutputs; ++u) shared.outputs[at + u * Parts::kColumnStep] = parts.outputs[u];
  if (shared.has_top != 0) {
    float others[kOutputs];
    fetch_outputs(item.p_rest, item.p_stride, item.queries.num_queries, head, p.shape.dim, first, e0, others);
#pragma unroll
    for (int32_t u = 0; u < kOutputs; ++u) shared.others[at + u * Parts::kColumnStep] = others[u];
  }
}

// Accumulators of a warp's 16 rows x 8 queries or columns: lane 4 g + c holds (g, 2c) (g, 2c + 1) (g + 8, 2c) (g + 8, 2c + 1).
template <class T, int32_t kDim>
__device__ __forceinline__ void logits_of(const IndicatorShared<T, kDim>& shared, int32_t warp_row,
                                          float (&s)[kQueryTiles][4]) {
  constexpr int32_t kRow = IndicatorShared<T, kDim>::kRow;
#pragma unroll
  for (int32_t d = 0; d < kDim; d += 16) {
    MmaA<T> a;
    load_a(a, shared.keys + warp_row * kRow + d, kRow);
#pragma unroll
    for (int32_t n = 0; n < kQueryTiles; n += 2) {
      MmaB<T> b[2];
      load_b_pair(b, shared.queries + n * 8 * kRow + d, kRow);
      mma(s[n], a, b[0]);
      mma(s[n + 1], a, b[1]);
    }
  }
}

// u = R_g (v - v_mean), columns [e0, e0 + 32).
template <class T, int32_t kDim>
__device__ __forceinline__ void project(const IndicatorShared<T, kDim>& shared, bool has_projection,
                                        int32_t warp_row, int32_t e0, float (&u)[kChunk / 8][4]) {
  constexpr int32_t kRow = IndicatorShared<T, kDim>::kRow;
  if (!has_projection) {
    const auto lane = static_cast<int32_t>(lane_idx());
#pragma unroll
    for (int32_t n = 0; n < kChunk / 8; ++n) {
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
        const int32_t at = (warp_row + lane / 4 + i / 2 * 8) * kRow + e0 + n * 8 + lane % 4 * 2 + i % 2;
        u[n][i] = to_f32(shared.values_high[at]) + to_f32(shared.values_low[at]);
      }
    }
    return;
  }
  for (int32_t d = e0; d < kDim; d += 16) {
    MmaA<bf16> high, low;
    load_a(high, shared.values_high + warp_row * kRow + d, kRow);
    load_a(low, shared.values_low + warp_row * kRow + d, kRow);
#pragma unroll
    for (int32_t n = 0; n < kChunk / 8; n += 2) {
      MmaB<bf16> r_high[2], r_low[2];
      load_b_pair_trans(r_high, shared.projection_high + d * kChunkRow + n * 8, kChunkRow);
      load_b_pair_trans(r_low, shared.projection_low + d * kChunkRow + n * 8, kChunkRow);
#pragma unroll
      for (int32_t j = 0; j < 2; ++j) {
        mma(u[n + j], low, r_high[j]);
        mma(u[n + j], high, r_low[j]);
        mma(u[n + j], high, r_high[j]);
      }
    }
  }
}

// distance[h][t] += sum over this lane's columns of (p_t - u)^2, for its rows g and g + 8; p_rest in place of p where the row is
// the query's top.
template <bool kHasTop, class T, int32_t kDim>
__device__ __forceinline__ void add_distances(const IndicatorShared<T, kDim>& shared, int32_t warp_row,
                                              const float (&u)[kChunk / 8][4],
                                              float (&distance)[2][kTileCols]) {
  const auto lane = static_cast<int32_t>(lane_idx());
#pragma unroll
  for (int32_t t = 0; t < kTileCols; ++t) {
    const int32_t top = kHasTop ? shared.top[t] - warp_row - lane / 4 : -1;
#pragma unroll
    for (int32_t n = 0; n < kChunk / 8; ++n) {
      const int32_t at = t * kOutputRow + n * 8 + lane % 4 * 2;
      const float2 p = load_vector<float2>(shared.outputs + at);
      float2 p_of[2] = {p, p};
      if constexpr (kHasTop) {
        if (top == 0) p_of[0] = load_vector<float2>(shared.others + at);
        if (top == 8) p_of[1] = load_vector<float2>(shared.others + at);
      }
#pragma unroll
      for (int32_t h = 0; h < 2; ++h) {
        const float x = p_of[h].x - u[n][2 * h], y = p_of[h].y - u[n][2 * h + 1];
        distance[h][t] = fma_rn(x, x, distance[h][t]);
        distance[h][t] = fma_rn(y, y, distance[h][t]);
      }
    }
  }
}

// The sums over the four lanes of a row, of this lane's queries: 8 n + 2 c and the one after it at [n][0] and [n][1].
__device__ __forceinline__ void exchange(const float (&distance)[kTileCols], float (&own)[kQueryTiles][2]) {
  const uint32_t c = lane_idx() & 3u;
#pragma unroll
  for (int32_t n = 0; n < kQueryTiles; ++n) {
#pragma unroll
    for (int32_t b = 0; b < 2; ++b) {
      const float x[4] = {distance[8 * n + b], distance[8 * n + 2 + b], distance[8 * n + 4 + b],
                          distance[8 * n + 6 + b]};
      const bool is_high = (c & 2u) != 0, is_odd = (c & 1u) != 0;
      const float even = (is_high ? x[2] : x[0]) + shuffle_xor(is_high ? x[0] : x[2], 2);
      const float odd = (is_high ? x[3] : x[1]) + shuffle_xor(is_high ? x[1] : x[3], 2);
      own[n][b] = (is_odd ? odd : even) + shuffle_xor(is_odd ? even : odd, 1);
    }
  }
}

template <class T, int32_t kDim>
__global__ void __launch_bounds__(kTileThreads, 2)
    score_indicator_kernel(const __grid_constant__ ScoreParams p) {
  wait_for_previous();
  auto& shared = *shared_memory<IndicatorShared<T, kDim>>();
  const ScoreView& item = p.items[blockIdx.z];
  const auto kv_head = static_cast<int32_t>(blockIdx.y);
  const DeviceRows rows(item.rows, p.pool, kv_head, p.shape.dim);
  const int32_t begin = static_cast<int32_t>(blockIdx.x) * kTileRows;
  if (begin >= rows.num_rows) return;
  const int32_t count = min(kTileRows, rows.num_rows - begin);
  float* out = item.out + kv_head * item.out_stride + begin;
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const auto lane = static_cast<int32_t>(lane_idx());
  const int32_t warp_row = static_cast<int32_t>(warp_idx()) * 16, g = lane / 4, c = lane % 4 * 2;

  if (thread == 0) shared.is_scored = 0;
  sync_threads();
  // Rows whose place is settled get 0; where all are, nothing is computed.
  if (thread < count && place_of(item.protect, rows, begin + thread) == 1) atomic_or(&shared.is_scored, 1u);
  sync_threads();
  if (shared.is_scored == 0) {
    if (thread < count) out[thread] = 0.0f;
    return;
  }
  load_row_positions(rows, begin, count, shared.row_positions);
  load_rows(rows, item.v_mean + kv_head * item.mean_stride, begin, count, shared);

  float scores[2] = {0.0f, 0.0f};
  for (int32_t member = 0; member < p.shape.group; ++member) {
    const int32_t head = kv_head * p.shape.group + member;
    float values[2] = {0.0f, 0.0f};
    int32_t num_seeing = 0;
    for (int32_t first = 0; first < item.queries.num_queries; first += kTileCols) {
      ChunkParts<kDim> parts;
      fetch_chunk(p, item, head, first, 0, parts);
      sync_threads();  // what is written now has been read
      if (thread == 0) shared.has_top = 0;
      load_query_positions(item.queries, first, shared.query_positions);
      query_weights(p, item, head, first, num_seeing, shared.weights);
      sync_threads();
      load_head_queries(p, item, head, begin, first, shared);
      sync_threads();

      float s[kQueryTiles][4] = {};
      logits_of(shared, warp_row, s);
      float distance[2][kTileCols] = {};
      for (int32_t e0 = 0; e0 < kDim; e0 += kChunk) {
        if (e0 > 0) sync_threads();
        store_chunk(p, item, head, first, e0, parts, shared);
        sync_threads();
        if (e0 + kChunk < kDim) fetch_chunk(p, item, head, first, e0 + kChunk, parts);
        float u[kChunk / 8][4] = {};
        project(shared, item.projection != nullptr, warp_row, e0, u);
        if (shared.has_top != 0) {
          add_distances<true>(shared, warp_row, u, distance);
        } else {
          add_distances<false>(shared, warp_row, u, distance);
        }
      }

      int32_t seen_here = 0;
      float keep = 1.0f;  // (1-alpha)^seen_here, the older blocks' weight
      for (int32_t t = 0; t < kTileCols; ++t) {
        if (shared.weights[t] == 0.0f) continue;
        ++seen_here;
        keep *= 1.0f - p.alpha;
      }
#pragma unroll
      for (int32_t h = 0; h < 2; ++h) {
        float own[kQueryTiles][2];
        exchange(distance[h], own);
        const int32_t r = warp_row + g + 8 * h;
        float sum = 0.0f;
#pragma unroll
        for (int32_t n = 0; n < kQueryTiles; ++n) {
#pragma unroll
          for (int32_t b = 0; b < 2; ++b) {
            const int32_t t = 8 * n + c + b;
            const float weight = shared.weights[t];
            if (weight == 0.0f) continue;  // padding, or it sees nothing
            float logit = s[n][2 * h + b] * p.shape.scale;
            if (p.shape.softcap > 0.0f) logit = p.shape.softcap * tanhf(logit / p.shape.softcap);
            const int32_t away = shared.query_positions[t] - shared.row_positions[r];
            if (r >= count || away < 0 || (p.shape.window != 0 && away >= p.shape.window)) logit = -kInfinity;
            const float a = expf(logit - shared.lse[t]);
            const float norm = p.tau == 1.0f ? sqrtf(own[n][b]) : powf(own[n][b], 0.5f * p.tau);
            float e = a / (1.0f - a) * norm;
            if (shared.top[t] == r) {
              const float rest = shared.rest[t];
              const float share = 1.0f / (1.0f + rest);
              e = p.tau == 1.0f ? share * norm : share * powf(rest * share, p.tau - 1.0f) * norm;
              if (rest == 0.0f) e = kInfinity;  // the others' mass underflowed: the row is mandatory
            }
            if (p.normalize) e /= shared.norm[t];
            switch (p.reduce) {
              case QueryReduce::kRms: sum += e * e; break;
              case QueryReduce::kMax: sum = max_or_nan(sum, e); break;
              default: sum += weight * e; break;
            }
          }
        }
#pragma unroll
        for (uint32_t bits = 1; bits < 4; bits *= 2) {
          const float other = shuffle_xor(sum, bits);
          sum = p.reduce == QueryReduce::kMax ? max_or_nan(sum, other) : sum + other;
        }
        values[h] = join_queries(p.reduce, values[h], sum, keep, num_seeing, seen_here);
      }
      num_seeing += seen_here;
    }
#pragma unroll
    for (int32_t h = 0; h < 2; ++h) {
      scores[h] = join_group(p.group_reduce, scores[h], finish_queries(p.reduce, values[h], num_seeing));
    }
  }
#pragma unroll
  for (int32_t h = 0; h < 2; ++h) {
    const int32_t r = warp_row + g + 8 * h;
    if (c != 0 || r >= count) continue;
    const bool is_scored = place_of(item.protect, rows, begin + r, shared.row_positions[r]) == 1;
    out[r] = is_scored ? finish_group(p.group_reduce, scores[h], p.shape.group) : 0.0f;
  }
}

// fetch_chunk reads four of its columns at a time.
bool has_projection_quads(const ScoreArgs& args) {
  return std::all_of(args.items.begin(), args.items.end(), [](const ScoreItem& item) {
    return reinterpret_cast<uintptr_t>(item.projection.data) % 16 == 0 && item.projection.stride % 4 == 0;
  });
}

}  // namespace

bool score_indicator(Context& context, const ScoreArgs& args, const ScoreParams& params, int32_t most) {
  const DType type = common_type(args.items, args.cache);
  if (type == DType::kF32 || args.shape.head_dim > kMaxDim || !is_aligned(args.items, args.shape.head_dim) ||
      !has_projection_quads(args))
    return false;
  dispatch_half(type, [&]<class T>() {
    const auto start = [&]<int32_t kDim>() {
      launch(score_indicator_kernel<T, kDim>,
             {.x = blocks_of(most, kTileRows),
              .y = static_cast<uint32_t>(args.shape.num_kv_heads),
              .z = static_cast<uint32_t>(args.items.size())},
             kTileThreads, sizeof(IndicatorShared<T, kDim>), context.ready(), params);
    };
    if (args.shape.head_dim <= 64) return start.template operator()<64>();
    start.template operator()<kMaxDim>();
  });
  return true;
}

}  // namespace restkv::cuda
