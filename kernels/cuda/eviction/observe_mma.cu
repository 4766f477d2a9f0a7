// observe's partial results (observe.cu) where rows and queries are of one 16-bit type, on tensor cores:
//   logits   Q K^T, products of the type itself
//   acc      exp(l - m) V, the weights as two halves of the type, weight = high + low: of bf16 16 bits; f16, which has not f32's
//            range, holds them as multiples of 2^e, the power of two below the tile's largest one, and so 20 bits and more
// A block of four warps passes over the rows of a split, 32 at a time through a ring of three stages; each warp has 16 queries of a
// head, and the block the 32 queries of two heads of the group. A lane holds its queries g and g + 8 in the places of the mma's
// accumulators, running top row and all. A larger logit is rare behind the first tiles: the row that was the top is then read again
// from memory. Sums are in a fixed order, so neighbours in the batch change no bit.
// Grid: (split, two heads of a unit's group). Bound: latency for short splits, then the products, 6*N*H*Q*D. Shared memory at
// D = 128: 69 KiB: 3 blocks of sm_90, 2 of sm_80, 1 of sm_86.
// Occupancy: observe_mma_kernel 128 x 2.
#include <type_traits>

#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/eviction/half_type.h"
#include "kernels/cuda/eviction/halves.h"
#include "kernels/cuda/eviction/observe_parts.h"

namespace restkv::cuda {
namespace {

constexpr int32_t kMaxDim = 128;
constexpr int32_t kWarps = kTileThreads / 32;
constexpr int32_t kWarpQueries = 16;
constexpr int32_t kRows = 32;  // of a tile
constexpr int32_t kColumnTiles = kRows / 8;
constexpr int32_t kStages = 3;
static_assert(kTileCols == 2 * kWarpQueries && kSplitRows % kRows == 0 && kTileRows % kRows == 0);

template <class T, int32_t kDim>
struct MmaShared {
  static constexpr int32_t kRow = kDim + 8;
  struct Stage {
    T keys[kRows * kRow];
    T values[kRows * kRow];
    int32_t positions[kRows];
  };
  T queries[kWarps][kWarpQueries * kRow];
  Stage ring[kStages];
  int32_t query_positions[kTileCols];
};
static_assert(sizeof(MmaShared<bf16, kMaxDim>) <= (99u << 10), "sm_86");
static_assert(fits_multiprocessor(sizeof(MmaShared<bf16, kMaxDim>), 2));

// What a lane knows of its queries g and g + 8.
template <int32_t kDim>
struct LaneState {
  float top_logit[2] = {-kInfinity, -kInfinity};
  int32_t top[2] = {-1, -1};
  float rest[2] = {0.0f, 0.0f};  // of this lane's columns
  float acc[kDim / 8][4] = {};
};

// Queries [first, first + 16) of a head; zeros for those that are not there.
template <class T, int32_t kDim>
__device__ __forceinline__ void load_warp_queries(const ObserveParams& p, const ObserveView& item,
                                                  int32_t head, int32_t first, T* tile) {
  constexpr int32_t kRow = MmaShared<T, kDim>::kRow, kPieces = kDim / 8;
  for (auto i = static_cast<int32_t>(lane_idx()); i < kWarpQueries * kPieces; i += 32) {
    const int32_t t = i / kPieces, c = i % kPieces * 8;
    uint4 x = {0, 0, 0, 0};
    if (first + t < item.queries.num_queries && c < p.shape.dim) {
      DType dtype = DType::kF32;
      const std::byte* q = query_at(item.queries, p.pool, head, p.shape.group, p.shape.dim, first + t, dtype);
      x = load_vector<uint4>(q + int64_t{2} * c);
    }
    store_vector(tile + t * kRow + c, x);
  }
}

// Copies rows [begin, begin + 32) to a stage, those from `end` on as zeros.
template <class T, int32_t kDim>
struct RowCopy {
  static constexpr int32_t kRow = MmaShared<T, kDim>::kRow, kPieces = kDim / 8;
  static constexpr int32_t kRowStep = kTileThreads / kPieces, kCount = kRows / kRowStep;
  static_assert(kRows % kRowStep == 0);
  const DeviceRows& rows;
  const std::byte* any;  // an address to copy nothing from
  int32_t end;
  bool with_values;
  int32_t pages[kCount];  // of this thread's rows of the next tile

  __device__ __forceinline__ void ask_pages(int32_t begin) {
#pragma unroll
    for (int32_t j = 0; j < kCount; ++j) {
      const int32_t row = begin + static_cast<int32_t>(threadIdx.x) / kPieces + j * kRowStep;
      pages[j] = row < end ? rows.page_of(row) : 0;
    }
  }
  // After ask_pages(begin).
  __device__ __forceinline__ void copy(int32_t begin, typename MmaShared<T, kDim>::Stage& stage) const {
    const int32_t c = static_cast<int32_t>(threadIdx.x) % kPieces * 8;
#pragma unroll
    for (int32_t j = 0; j < kCount; ++j) {
      const int32_t r = static_cast<int32_t>(threadIdx.x) / kPieces + j * kRowStep, row = begin + r;
      const bool is_row = row < end, is_there = is_row && c < rows.dim;
      const uint32_t bytes = is_there ? 16 : 0;
      cp_async16(stage.keys + r * kRow + c, is_there ? rows.at(row, pages[j], false) + int64_t{2} * c : any,
                 bytes);
      if (with_values) {
        cp_async16(stage.values + r * kRow + c,
                   is_there ? rows.at(row, pages[j], true) + int64_t{2} * c : any, bytes);
      }
      if (c == 0 && is_row) {
        if (row < rows.num_paged) {
          cp_async4(stage.positions + r, rows.position_at(row, pages[j]));
        } else {
          stage.positions[r] = rows.source.first_position + (row - rows.num_paged);
        }
      }
    }
  }
};

// s: scaled and capped logits of 16 queries x 32 rows; -inf where a query does not see a row, and from `count` on.
template <class T, int32_t kDim>
__device__ __forceinline__ void tile_logits_of(const LogitShape& shape, const T* queries,
                                               const typename MmaShared<T, kDim>::Stage& stage, int32_t count,
                                               const int32_t (&positions)[2], const bool (&is_query)[2],
                                               float (&s)[kColumnTiles][4]) {
  constexpr int32_t kRow = MmaShared<T, kDim>::kRow;
#pragma unroll
  for (int32_t d = 0; d < kDim; d += 16) {
    MmaA<T> a;
    load_a(a, queries + d, kRow);
#pragma unroll
    for (int32_t n = 0; n < kColumnTiles; n += 2) {
      MmaB<T> b[2];
      load_b_pair(b, stage.keys + n * 8 * kRow + d, kRow);
      mma(s[n], a, b[0]);
      mma(s[n + 1], a, b[1]);
    }
  }
  const int32_t c = static_cast<int32_t>(lane_idx()) % 4 * 2;
#pragma unroll
  for (int32_t n = 0; n < kColumnTiles; ++n) {
#pragma unroll
    for (int32_t b = 0; b < 2; ++b) {
      const int32_t r = n * 8 + c + b, position = r < count ? stage.positions[r] : 0;
#pragma unroll
      for (int32_t h = 0; h < 2; ++h) {
        float& x = s[n][2 * h + b];
        x *= shape.scale;
        if (shape.softcap > 0.0f) x = shape.softcap * tanhf(x / shape.softcap);
        const int32_t distance = positions[h] - position;
        const bool is_seen =
            r < count && is_query[h] && distance >= 0 && (shape.window == 0 || distance < shape.window);
        if (!is_seen) x = -kInfinity;
      }
    }
  }
}

// Where the tile has a logit above the top's, its oldest largest one becomes the top, and the old top joins the rest.
template <class T, int32_t kDim>
__device__ __forceinline__ void raise_tops(const DeviceRows& rows, int32_t begin, bool with_values,
                                           const float (&s)[kColumnTiles][4], LaneState<kDim>& state) {
  const int32_t c = static_cast<int32_t>(lane_idx()) % 4 * 2;
#pragma unroll
  for (int32_t h = 0; h < 2; ++h) {
    float best = state.top_logit[h];
    int32_t best_row = -1;
#pragma unroll
    for (int32_t n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int32_t b = 0; b < 2; ++b) {
        if (s[n][2 * h + b] > best) {
          best = s[n][2 * h + b];
          best_row = n * 8 + c + b;
        }
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
    if (best_row < 0) continue;
    const int32_t old = state.top[h];
    if (old >= 0) {
      const float factor = expf(state.top_logit[h] - best);
      state.rest[h] = state.rest[h] * factor + (c == 0 ? factor : 0.0f);
      if (with_values) {
        const std::byte* value = rows.value(old) + int64_t{2} * c;
        uint32_t pair[kDim / 8];
#pragma unroll
        for (int32_t n = 0; n < kDim / 8; ++n) {
          pair[n] = n * 8 < rows.dim ? load_vector<uint32_t>(value + n * 16) : 0;
        }
#pragma unroll
        for (int32_t n = 0; n < kDim / 8; ++n) {
          const float2 v = unpack2<T>(pair[n]);
          state.acc[n][2 * h] = (state.acc[n][2 * h] + v.x) * factor;
          state.acc[n][2 * h + 1] = (state.acc[n][2 * h + 1] + v.y) * factor;
        }
      }
    }
    state.top_logit[h] = best;
    state.top[h] = begin + best_row;
  }
}

// Logits become weights; the top's is 0.
template <int32_t kDim>
__device__ __forceinline__ void weigh(int32_t begin, float (&s)[kColumnTiles][4], LaneState<kDim>& state) {
  const int32_t c = static_cast<int32_t>(lane_idx()) % 4 * 2;
#pragma unroll
  for (int32_t h = 0; h < 2; ++h) {
    const float shift = state.top[h] >= 0 ? state.top_logit[h] : 0.0f;
    const int32_t top = state.top[h] - begin - c;  // negative where it is of an earlier tile
#pragma unroll
    for (int32_t n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int32_t b = 0; b < 2; ++b) {
        float& x = s[n][2 * h + b];
        x = top == n * 8 + b ? 0.0f : expf(x - shift);
        state.rest[h] += x;
      }
    }
  }
}

// acc += weights x V.
template <class T, int32_t kDim>
__device__ __forceinline__ void add_tile_values(const T* values, float (&s)[kColumnTiles][4],
                                                LaneState<kDim>& state) {
  constexpr int32_t kRow = MmaShared<T, kDim>::kRow;
  constexpr bool kIsScaled = std::is_same_v<T, f16>;
  float scale[2] = {1.0f, 1.0f};
  if constexpr (kIsScaled) {
#pragma unroll
    for (int32_t h = 0; h < 2; ++h) {
      float largest = 0.0f;
#pragma unroll
      for (int32_t n = 0; n < kColumnTiles; ++n) {
        largest = fmaxf(largest, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
      }
#pragma unroll
      for (uint32_t bits = 1; bits < 4; bits *= 2) largest = fmaxf(largest, shuffle_xor(largest, bits));
      float inverse = 1.0f;
      scale_of(largest, scale[h], inverse);
#pragma unroll
      for (int32_t n = 0; n < kColumnTiles; ++n) {
        s[n][2 * h] *= inverse;
        s[n][2 * h + 1] *= inverse;
      }
    }
  }
  MmaA<T> high[kRows / 16], low[kRows / 16];
#pragma unroll
  for (int32_t k = 0; k < kRows / 16; ++k) split_accumulators(s[2 * k], s[2 * k + 1], high[k], low[k]);
#pragma unroll
  for (int32_t n = 0; n < kDim / 8; n += 2) {
    float sum[2][4] = {};
    float(&left)[4] = kIsScaled ? sum[0] : state.acc[n];
    float(&right)[4] = kIsScaled ? sum[1] : state.acc[n + 1];
#pragma unroll
    for (int32_t k = 0; k < kRows / 16; ++k) {
      MmaB<T> b[2];
      load_b_pair_trans(b, values + k * 16 * kRow + n * 8, kRow);
      mma(left, low[k], b[0]);
      mma(right, low[k], b[1]);
      mma(left, high[k], b[0]);
      mma(right, high[k], b[1]);
    }
    if constexpr (kIsScaled) {
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
        state.acc[n][i] = fma_rn(left[i], scale[i / 2], state.acc[n][i]);
        state.acc[n + 1][i] = fma_rn(right[i], scale[i / 2], state.acc[n + 1][i]);
      }
    }
  }
}

template <class T, int32_t kDim>
__global__ void __launch_bounds__(kTileThreads, 2)
    observe_mma_kernel(const __grid_constant__ ObserveParams p) {
  wait_for_previous();
  auto& shared = *shared_memory<MmaShared<T, kDim>>();
  const int32_t group = p.shape.group, dim = p.shape.dim;
  const int32_t pairs = (group + 1) / 2;  // of heads
  const int32_t cell = p.first_unit / group + static_cast<int32_t>(blockIdx.y) / pairs;
  const auto warp = static_cast<int32_t>(warp_idx()), lane = static_cast<int32_t>(lane_idx());
  const int32_t member = static_cast<int32_t>(blockIdx.y) % pairs * 2 + warp / 2;
  const int32_t unit_index = cell * group + member - p.first_unit;  // of the launch's, for this warp
  const Unit unit = unit_of(p, static_cast<uint32_t>(cell * group - p.first_unit));  // the group's first head
  const ObserveView& item = p.items[unit.item];
  if (unit.first >= item.queries.num_queries) return;
  const DeviceRows rows(item.rows, p.pool, unit.head / group, dim);
  const auto split = static_cast<int32_t>(blockIdx.x);
  if (split >= num_splits(rows.num_rows)) return;
  const int32_t split_begin = split * rows_per_split(rows.num_rows);
  const int32_t split_end = min(rows.num_rows, split_begin + rows_per_split(rows.num_rows));
  const int32_t first = warp % 2 * kWarpQueries;  // of the unit's 32 queries
  // The others help to copy.
  const bool is_active = member < group && unit_index >= 0 && unit_index < p.num_units &&
                         unit.first + first < item.queries.num_queries;

  RowCopy<T, kDim> copier{rows, item.rows.k ? item.rows.k : p.pool.pool, split_end, p.with_values != 0, {}};
  copier.ask_pages(split_begin);
#pragma unroll
  for (int32_t i = 0; i + 1 < kStages; ++i) {
    copier.copy(split_begin + i * kRows, shared.ring[i]);
    cp_async_commit();
    copier.ask_pages(split_begin + (i + 1) * kRows);
  }
  load_query_positions(item.queries, unit.first, shared.query_positions);
  T* queries = shared.queries[warp];
  if (is_active) load_warp_queries<T, kDim>(p, item, unit.head + member, unit.first + first, queries);
  sync_threads();
  const int32_t g = lane / 4, c = lane % 4 * 2;
  const int32_t positions[2] = {shared.query_positions[first + g], shared.query_positions[first + g + 8]};
  const bool is_query[2] = {unit.first + first + g < item.queries.num_queries,
                            unit.first + first + g + 8 < item.queries.num_queries};
  const int32_t last_position =
      shared.query_positions[min(item.queries.num_queries - unit.first, kTileCols) - 1];

  LaneState<kDim> state;
  int32_t stage_index = 0;
  for (int32_t begin = split_begin; begin < split_end; begin += kRows) {
    cp_async_wait<kStages - 2>();
    sync_threads();  // the tile is there for all, and its predecessor's stage is free
    copier.copy(begin + (kStages - 1) * kRows, shared.ring[(stage_index + kStages - 1) % kStages]);
    cp_async_commit();
    copier.ask_pages(begin + kStages * kRows);
    const auto& stage = shared.ring[stage_index];
    stage_index = (stage_index + 1) % kStages;
    if (stage.positions[0] > last_position) break;  // seen by none, nor are later rows
    if (!is_active) continue;
    const int32_t count = min(kRows, split_end - begin);
    float s[kColumnTiles][4] = {};
    tile_logits_of<T, kDim>(p.shape, queries, stage, count, positions, is_query, s);
    float largest[2] = {-kInfinity, -kInfinity};
#pragma unroll
    for (int32_t n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) largest[i / 2] = fmaxf(largest[i / 2], s[n][i]);
    }
    if (any(largest[0] > state.top_logit[0] || largest[1] > state.top_logit[1])) {
      raise_tops<T>(rows, begin, p.with_values != 0, s, state);
    }
    weigh(begin, s, state);
    if (p.with_values) add_tile_values<T, kDim>(stage.values, s, state);
  }
  cp_async_wait<0>();
  if (!is_active) return;

  const int64_t at = int64_t{unit_index} * p.max_splits + split;
#pragma unroll
  for (int32_t h = 0; h < 2; ++h) {
    float rest = state.rest[h];
#pragma unroll
    for (uint32_t bits = 1; bits < 4; bits *= 2) rest += shuffle_xor(rest, bits);
    const int32_t t = first + g + 8 * h;
    if (c == 0) {
      p.stats[at * 2 * kTileCols + t] = state.top_logit[h];
      p.stats[at * 2 * kTileCols + kTileCols + t] = rest;
      p.tops[at * kTileCols + t] = state.top[h];
    }
    if (p.with_values) {
      float* acc = p.accs + (at * kTileCols + t) * dim;
#pragma unroll
      for (int32_t n = 0; n < kDim / 8; ++n) {
        const int32_t d = n * 8 + c;
        if (d < dim) store_vector(acc + d, float2{state.acc[n][2 * h], state.acc[n][2 * h + 1]});
      }
    }
  }
}

}  // namespace

DType mma_type(const ObserveArgs& args) {
  const int32_t dim = args.shape.head_dim;
  return dim <= kMaxDim && is_aligned(args.items, dim) ? common_type(args.items, args.cache) : DType::kF32;
}

void observe_units(Context& context, const ObserveParams& params, DType type) {
  const int32_t group = params.shape.group;
  // Groups of heads of which some are the launch's.
  const int32_t cells = (params.first_unit + params.num_units - 1) / group - params.first_unit / group + 1;
  const Grid grid{.x = static_cast<uint32_t>(params.max_splits),
                  .y = static_cast<uint32_t>(cells * ((group + 1) / 2))};
  dispatch_half(type, [&]<class T>() {
    const auto start = [&]<int32_t kDim>() {
      launch(observe_mma_kernel<T, kDim>, grid, kTileThreads, sizeof(MmaShared<T, kDim>), context.ready(),
             params);
    };
    if (params.shape.dim <= 64) return start.template operator()<64>();
    start.template operator()<kMaxDim>();
  });
}

}  // namespace restkv::cuda
