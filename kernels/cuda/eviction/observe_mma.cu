// observe's partial results (observe.cu) where rows and queries are of one 16-bit type, on tensor cores:
//   logits   Q K^T, products of the type itself
//   acc      exp(l - m) V, the weights as two halves of the type, weight = high + low: of bf16 16 bits; f16, which has not f32's
//            range, holds them as multiples of 2^e, the power of two below the tile's largest one, and so 20 bits and more
// A block of four warps passes over the rows of a split, 32 at a time through a ring of three stages; each warp has 16 queries of a
// head in registers, and the block the 32 queries of two heads of the group. A lane holds its queries g and g + 8 in the places of
// the mma's accumulators. What makes a tile cheap:
//   - weights are 2^(unit x - offset) of the products x; the offset follows the top logit only where that is 2^8 above it
//   - a tile that all queries see is not masked, one that none sees is passed over
//   - only a top row that outweighs the others when it comes is kept out of acc (no other can have a > 1/2 in the end, and p_rest
//     is told only then); should a larger one come all the same, its value is read again from memory
// Sums are in a fixed order and a query's do not depend on the others', so neighbours in the batch change no bit.
// Grid: (two heads of a unit's group, split). Bound: the products, 6*N*H*Q*D, and ldmatrix beside them; K and V come from L2 once
// for two heads. Shared memory at D = 128: 52 KiB: 3 blocks of sm_80 and sm_90, 1 of sm_86; as many in registers for bf16.
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
constexpr int32_t kLeastSlots = 16;  // of a page
template <class T>
constexpr int32_t kBlocks = std::is_same_v<T, f16> ? 2 : 3;  // its sums in multiples of 2^e take registers
constexpr float kHeadroom = 8.0f;                            // of weights, in log2
static_assert(kTileCols == 2 * kWarpQueries && kSplitRows % kRows == 0 && kTileRows % kRows == 0 &&
              kRows % kLeastSlots == 0);

template <class T, int32_t kDim>
struct MmaShared {
  static constexpr int32_t kRow = kDim + 8;
  struct Stage {
    T rows[2][kRows * kRow];  // keys, values
    int32_t positions[kRows];
  };
  Stage ring[kStages];                 // the last one holds the queries at first
  int64_t results[kWarps];             // where each warp's go, kept out of registers
  int32_t query_positions[kTileCols];  // the last one's for those that are not there
};
static_assert(kWarps * kWarpQueries == 2 * kRows, "queries take a stage's rows");
static_assert(fits_multiprocessor(sizeof(MmaShared<bf16, kMaxDim>), 3));

// What a lane knows of its queries g and g + 8.
template <int32_t kDim>
struct LaneState {
  float top_product[2] = {-kInfinity, -kInfinity};
  int32_t top[2] = {-1, -1};       // its row, kTopIsIn
  float offset[2] = {0.0f, 0.0f};  // of the weights in rest and acc
  float rest[2] = {0.0f, 0.0f};    // of this lane's columns, without the top
  float acc[kDim / 8][4] = {};
};

// Queries [first, first + 16) of a head as a operands, by way of `tile`; zeros for those that are not there.
template <class T, int32_t kDim>
__device__ __forceinline__ void load_warp_queries(const ObserveParams& p, const ObserveView& item,
                                                  int32_t head, int32_t first, T* tile,
                                                  MmaA<T> (&queries)[kDim / 16]) {
  constexpr int32_t kRow = MmaShared<T, kDim>::kRow, kPieces = kDim / 8;
#pragma unroll
  for (int32_t i = 0; i < kWarpQueries * kPieces / 32; ++i) {
    const int32_t at = static_cast<int32_t>(lane_idx()) + i * 32, t = at / kPieces, c = at % kPieces * 8;
    uint4 x = {0, 0, 0, 0};
    if (first + t < item.queries.num_queries && c < p.shape.dim) {
      DType dtype = DType::kF32;
      const std::byte* q = query_at(item.queries, p.pool, head, p.shape.group, p.shape.dim, first + t, dtype);
      x = load_vector<uint4>(q + int64_t{2} * c);
    }
    store_vector(tile + t * kRow + c, x);
  }
  sync_warp();
#pragma unroll
  for (int32_t d = 0; d < kDim / 16; ++d) load_a(queries[d], tile + d * 16, kRow);
}

// Copies rows [begin, begin + 32) to a stage, those from `end` on as zeros. Its fields are copies, so that no copy has to read
// them again from memory.
template <class T, int32_t kDim>
struct RowCopy {
  static constexpr int32_t kRow = MmaShared<T, kDim>::kRow, kPieces = kDim / 8;
  static constexpr int32_t kRowStep = kTileThreads / kPieces, kCount = kRows / kRowStep;
  static constexpr int32_t kPages = kRows / kLeastSlots;  // of a tile at most
  static_assert(kRows % kRowStep == 0 && kLeastSlots % kRowStep == 0);
  const ObserveParams& p;
  const int32_t* page_ids;
  const std::byte *keys, *values;   // scratch row 0 of this head, this thread's column
  uint32_t key_bytes, value_bytes;  // of a scratch row
  int32_t num_paged, first_position, end;

  __device__ static int32_t row_of_thread() { return static_cast<int32_t>(threadIdx.x) / kPieces; }
  __device__ static int32_t column() { return static_cast<int32_t>(threadIdx.x) % kPieces * 8; }

  __device__ RowCopy(const ObserveParams& params, const DeviceRows& rows, int32_t split_end)
      : p(params),
        page_ids(rows.pages),
        keys(rows.source.k + int64_t{2} * rows.head * rows.dim + column_bytes()),
        values(rows.source.v + int64_t{2} * rows.head * rows.dim + column_bytes()),
        key_bytes(static_cast<uint32_t>(rows.source.k_row_bytes)),
        value_bytes(static_cast<uint32_t>(rows.source.v_row_bytes)),
        num_paged(rows.num_paged),
        first_position(rows.source.first_position),
        end(split_end) {}

  // Of an address within the row, whatever the column.
  __device__ __forceinline__ uint32_t column_bytes() const {
    return static_cast<uint32_t>(2 * min(column(), p.shape.dim - 8));
  }
  __device__ __forceinline__ const std::byte* page_at(int32_t page) const {
    return p.pool.pool + uint64_t{static_cast<uint32_t>(page)} * static_cast<uint32_t>(p.pool.page_bytes);
  }
  __device__ __forceinline__ uint32_t slot_of(int32_t row) const {
    return static_cast<uint32_t>(row & (p.pool.slots - 1));
  }
  __device__ __forceinline__ uint32_t bytes_of_paged() const {
    return 2 * static_cast<uint32_t>(p.shape.dim);
  }
  __device__ __forceinline__ int32_t page_of(int32_t row) const {
    return row < num_paged ? page_ids[row >> p.pool.slot_shift] : 0;
  }
  // Of column 0.
  __device__ __forceinline__ const std::byte* value(int32_t row) const {
    if (row < num_paged) return page_at(page_of(row)) + p.pool.value_offset + slot_of(row) * bytes_of_paged();
    return values - column_bytes() + uint64_t{static_cast<uint32_t>(row - num_paged)} * value_bytes;
  }
  __device__ __forceinline__ void copy(int32_t begin, typename MmaShared<T, kDim>::Stage& stage) const {
    if (begin >= end) return;
    int32_t pages[kPages] = {};
    if (begin >= num_paged) {
      copy_rows<false>(begin, pages, stage);
    } else {
#pragma unroll
      for (int32_t j = 0; j < kPages; ++j) pages[j] = page_of(begin + j * kLeastSlots);
      copy_rows<true>(begin, pages, stage);
    }
    copy_positions(begin, pages, stage);
  }
  // pages: of the tile's rows, 16 by 16.
  template <bool kHasPages>
  __device__ __forceinline__ void copy_rows(int32_t begin, const int32_t (&pages)[kPages],
                                            typename MmaShared<T, kDim>::Stage& stage) const {
    T* to = stage.rows[0] + row_of_thread() * kRow + column();
#pragma unroll
    for (int32_t j = 0; j < kCount; ++j, to += kRowStep * kRow) {
      const int32_t wanted = begin + row_of_thread() + j * kRowStep;
      const int32_t row = min(wanted, end - 1);  // an address of nothing else
      const uint32_t bytes = wanted < end && column() < p.shape.dim ? 16 : 0;
      const std::byte *key, *value;
      if (kHasPages && row < num_paged) {
        key = page_at(pages[j * kRowStep / kLeastSlots]) + (slot_of(row) * bytes_of_paged() + column_bytes());
        value = key + p.pool.value_offset;
      } else {
        const auto scratch = static_cast<uint32_t>(row - num_paged);
        key = keys + uint64_t{scratch} * key_bytes;
        value = values + uint64_t{scratch} * value_bytes;
      }
      cp_async16(to, key, bytes);
      if (p.with_values) cp_async16(to + kRows * kRow, value, bytes);
    }
  }
  // By the first warp, a lane for a row.
  __device__ __forceinline__ void copy_positions(int32_t begin, const int32_t (&pages)[kPages],
                                                 typename MmaShared<T, kDim>::Stage& stage) const {
    const auto r = static_cast<int32_t>(threadIdx.x);
    const int32_t row = begin + r;
    if (r >= kRows || row >= end) return;
    if (row < num_paged) {
      static_assert(kPages == 2);
      const std::byte* page = page_at(r < kLeastSlots ? pages[0] : pages[1]);
      cp_async4(stage.positions + r, page + p.pool.position_offset + 4 * slot_of(row));
    } else {
      stage.positions[r] = first_position + (row - num_paged);
    }
  }
};

// How products become logits: in units of log2 by `unit`, natural ones by `natural`. Capped ones are both but for a factor.
struct Scale {
  float unit, natural;
  __device__ explicit Scale(const LogitShape& shape)
      : unit(shape.softcap > 0.0f ? kLog2e : shape.scale * kLog2e),
        natural(shape.softcap > 0.0f ? 1.0f : shape.scale) {}
};

// s: products of 16 queries x 32 rows, capped ones logits.
template <class T, int32_t kDim>
__device__ __forceinline__ void tile_products(const LogitShape& shape, const MmaA<T> (&queries)[kDim / 16],
                                              const T* keys, float (&s)[kColumnTiles][4]) {
  constexpr int32_t kRow = MmaShared<T, kDim>::kRow;
#pragma unroll
  for (int32_t d = 0; d < kDim / 16; ++d) {
#pragma unroll
    for (int32_t n = 0; n < kColumnTiles; n += 2) {
      MmaB<T> b[2];
      load_b_pair(b, keys + n * 8 * kRow + d * 16, kRow);
      mma(s[n], queries[d], b[0]);
      mma(s[n + 1], queries[d], b[1]);
    }
  }
  if (shape.softcap > 0.0f) {
    const float steepness = shape.scale / shape.softcap;
#pragma unroll
    for (int32_t n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (float& x : s[n]) x = shape.softcap * tanhf(x * steepness);
    }
  }
}

// -inf where a query does not see a row, and for rows from `count` on.
__device__ __forceinline__ void mask_tile(const int32_t* row_positions, int32_t count, int32_t window,
                                          const int32_t* query_positions, float (&s)[kColumnTiles][4]) {
  const int32_t g = static_cast<int32_t>(lane_idx()) / 4, c = static_cast<int32_t>(lane_idx()) % 4 * 2;
  const int32_t newest[2] = {query_positions[g], query_positions[g + 8]};  // that it sees
  const int32_t oldest[2] = {window > 0 ? max(newest[0] - window + 1, 0) : 0,
                             window > 0 ? max(newest[1] - window + 1, 0) : 0};
#pragma unroll
  for (int32_t n = 0; n < kColumnTiles; ++n) {
#pragma unroll
    for (int32_t b = 0; b < 2; ++b) {
      const int32_t r = n * 8 + c + b, position = r < count ? row_positions[r] : -1;
#pragma unroll
      for (int32_t h = 0; h < 2; ++h) {
        if (position < oldest[h] || position > newest[h]) s[n][2 * h + b] = -kInfinity;
      }
    }
  }
}

// acc += the old top's value, whose weight is given.
template <class T, int32_t kDim>
__device__ __forceinline__ void add_value(const std::byte* value, int32_t dim, int32_t h, float weight,
                                          LaneState<kDim>& state) {
  constexpr int32_t kLoads = 4;
  const std::byte* at = value + lane_idx() % 4 * 4;
#pragma unroll
  for (int32_t first = 0; first < kDim / 8; first += kLoads) {
    uint32_t pair[kLoads];
#pragma unroll
    for (int32_t i = 0; i < kLoads; ++i) {
      pair[i] = (first + i) * 8 < dim ? load_vector<uint32_t>(at + (first + i) * 16) : 0;
    }
#pragma unroll
    for (int32_t i = 0; i < kLoads; ++i) {
      const float2 v = unpack2<T>(pair[i]);
      float(&acc)[4] = state.acc[first + i];
      acc[2 * h] = fma_rn(weight, v.x, acc[2 * h]);
      acc[2 * h + 1] = fma_rn(weight, v.y, acc[2 * h + 1]);
    }
  }
}

// Where the tile has a product above the top's, its oldest largest one becomes the top, and the old top joins the rest. The new
// one is -inf in s; its place there: n * 2 + b in the lane that holds it, -2 in the others; -1 in all four where there is none, as
// it is at first. is_raised: whether any of the warp's queries has one, the same in all lanes.
template <class T, int32_t kDim>
__device__ __forceinline__ void raise_tops(const RowCopy<T, kDim>& rows, const Scale& scale, int32_t begin,
                                           float (&s)[kColumnTiles][4], LaneState<kDim>& state,
                                           const bool (&is_raised)[2], int32_t (&places)[2]) {
  const int32_t c = static_cast<int32_t>(lane_idx()) % 4 * 2;
#pragma unroll
  for (int32_t h = 0; h < 2; ++h) {
    if (!is_raised[h]) continue;
    float best = state.top_product[h];
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
    const float level = best * scale.unit;
    float shrink = 0.0f;
    const int32_t old = state.top[h];
    if (old >= 0) {
      const float weight = exp2_approx(fma_rn(state.top_product[h], scale.unit, -state.offset[h]));
      if (c == 0) state.rest[h] += weight;
      if (rows.p.with_values && (old & kTopIsIn) == 0) {
        add_value<T, kDim>(rows.value(old), rows.p.shape.dim, h, weight, state);
      }
      shrink = exp2_approx(state.offset[h] - level);
    }
    if (old < 0 || level > state.offset[h] + kHeadroom) {
      state.offset[h] = level;
      state.rest[h] *= shrink;
#pragma unroll
      for (auto& acc : state.acc) {
        acc[2 * h] *= shrink;
        acc[2 * h + 1] *= shrink;
      }
    }
    state.top_product[h] = best;
    state.top[h] = begin + best_row;
    const int32_t mine = best_row - c;  // n * 8 + b, if it is this lane's
    places[h] = -2;
#pragma unroll
    for (int32_t n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int32_t b = 0; b < 2; ++b) {
        if (mine == n * 8 + b) {
          s[n][2 * h + b] = -kInfinity;
          places[h] = n * 2 + b;
        }
      }
    }
  }
}

// Products become weights.
template <int32_t kDim>
__device__ __forceinline__ void weigh(const Scale& scale, float (&s)[kColumnTiles][4],
                                      LaneState<kDim>& state) {
#pragma unroll
  for (int32_t h = 0; h < 2; ++h) {
    float sum = 0.0f;
#pragma unroll
    for (int32_t n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int32_t b = 0; b < 2; ++b) {
        float& x = s[n][2 * h + b];
        x = exp2_approx(fma_rn(x, scale.unit, -state.offset[h]));
        sum += x;
      }
    }
    state.rest[h] += sum;
  }
}

// Whether the new tops stay apart: not where the others weigh more by now, and a quarter to spare for roundings, since rest only
// grows beside the top. Then a top has its weight among the others'.
template <int32_t kDim>
__device__ __forceinline__ void settle_tops(const Scale& scale, const int32_t (&places)[2],
                                            float (&s)[kColumnTiles][4], LaneState<kDim>& state) {
#pragma unroll
  for (int32_t h = 0; h < 2; ++h) {
    float rest = state.rest[h];
#pragma unroll
    for (uint32_t bits = 1; bits < 4; bits *= 2) rest += shuffle_xor(rest, bits);
    if (places[h] == -1) continue;
    const float weight = exp2_approx(fma_rn(state.top_product[h], scale.unit, -state.offset[h]));
    if (!(rest >= 1.25f * weight)) continue;
    state.top[h] |= kTopIsIn;
#pragma unroll
    for (int32_t n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int32_t b = 0; b < 2; ++b) {
        if (places[h] == n * 2 + b) s[n][2 * h + b] = weight;
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
__global__ void __launch_bounds__(kTileThreads, kBlocks<T>)
    observe_mma_kernel(const __grid_constant__ ObserveParams p) {
  wait_for_previous();
  auto& shared = *shared_memory<MmaShared<T, kDim>>();
  const int32_t group = p.shape.group, dim = p.shape.dim, window = p.shape.window;
  const int32_t pairs = (group + 1) / 2;  // of heads
  const int32_t cell = p.first_unit / group + static_cast<int32_t>(blockIdx.x) / pairs;
  const auto warp = static_cast<int32_t>(warp_idx()), lane = static_cast<int32_t>(lane_idx());
  const int32_t member = static_cast<int32_t>(blockIdx.x) % pairs * 2 + warp / 2;
  const int32_t unit_index = cell * group + member - p.first_unit;  // of the launch's, for this warp
  const Unit unit = unit_of(p, static_cast<uint32_t>(cell * group - p.first_unit));  // the group's first head
  const ObserveView& item = p.items[unit.item];
  const int32_t num_queries = item.queries.num_queries - unit.first;
  if (num_queries <= 0) return;
  const DeviceRows rows(item.rows, p.pool, unit.head / group, dim);
  const auto split = static_cast<int32_t>(blockIdx.y);
  if (split >= num_splits(rows.num_rows)) return;
  const int32_t split_begin = split * rows_per_split(rows.num_rows);
  const int32_t split_end = min(rows.num_rows, split_begin + rows_per_split(rows.num_rows));
  const int32_t first = warp % 2 * kWarpQueries;  // of the unit's 32 queries
  // The others help to copy.
  const bool is_active = member < group && unit_index >= 0 && unit_index < p.num_units && first < num_queries;

  const RowCopy<T, kDim> copier(p, rows, split_end);
#pragma unroll
  for (int32_t i = 0; i + 1 < kStages; ++i) {
    copier.copy(split_begin + i * kRows, shared.ring[i]);
    cp_async_commit();
  }
  if (const auto t = static_cast<int32_t>(threadIdx.x); t < kTileCols) {
    shared.query_positions[t] = item.queries.positions[unit.first + min(t, num_queries - 1)];
  }
  MmaA<T> queries[kDim / 16] = {};
  if (is_active) {
    load_warp_queries<T, kDim>(p, item, unit.head + member, unit.first + first,
                               shared.ring[kStages - 1].rows[warp / 2] + first * MmaShared<T, kDim>::kRow,
                               queries);
  }
  if (lane == 0) shared.results[warp] = int64_t{unit_index} * p.max_splits + split;
  sync_threads();
  const Scale scale(p.shape);

  LaneState<kDim> state;
  int32_t stage_index = 0;
  for (int32_t begin = split_begin; begin < split_end; begin += kRows) {
    cp_async_wait<kStages - 2>();
    sync_threads();  // the tile is there for all, and its predecessor's stage is free
    copier.copy(begin + (kStages - 1) * kRows, shared.ring[(stage_index + kStages - 1) % kStages]);
    cp_async_commit();
    const auto& stage = shared.ring[stage_index];
    stage_index = (stage_index + 1) % kStages;
    const int32_t count = min(kRows, split_end - begin);
    const int32_t oldest = stage.positions[0], newest = stage.positions[count - 1];
    const int32_t lowest = shared.query_positions[first];           // of the warp's
    const int32_t highest = shared.query_positions[kTileCols - 1];  // of the unit's
    if (oldest > highest) break;                                    // seen by none, nor are later rows
    if (!is_active || (window > 0 && lowest - newest >= window)) continue;
    float s[kColumnTiles][4] = {};
    tile_products<T, kDim>(p.shape, queries, stage.rows[0], s);
    if (count < kRows || newest > lowest || (window > 0 && highest - oldest >= window)) {
      mask_tile(stage.positions, count, window, shared.query_positions + first, s);
    }
    float largest[2] = {-kInfinity, -kInfinity};
#pragma unroll
    for (int32_t n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) largest[i / 2] = fmaxf(largest[i / 2], s[n][i]);
    }
    const bool is_raised[2] = {any(largest[0] > state.top_product[0]),
                               any(largest[1] > state.top_product[1])};
    int32_t places[2] = {-1, -1};
    if (is_raised[0] || is_raised[1]) raise_tops<T, kDim>(copier, scale, begin, s, state, is_raised, places);
    weigh(scale, s, state);
    if (!p.with_values) continue;
    if (is_raised[0] || is_raised[1]) settle_tops(scale, places, s, state);
    add_tile_values<T, kDim>(stage.rows[1], s, state);
  }
  cp_async_wait<0>();
  if (!is_active) return;

  const int32_t g = lane / 4, c = lane % 4 * 2;
  const int64_t at = shared.results[warp];
#pragma unroll
  for (int32_t h = 0; h < 2; ++h) {
    const bool has_top = state.top[h] >= 0;
    // from the weights' offset to the top's
    const float shrink =
        has_top ? exp2_approx(fma_rn(-scale.unit, state.top_product[h], state.offset[h])) : 1.0f;
    float rest = state.rest[h];
#pragma unroll
    for (uint32_t bits = 1; bits < 4; bits *= 2) rest += shuffle_xor(rest, bits);
    const int32_t t = first + g + 8 * h;
    if (c == 0) {
      p.stats[at * 2 * kTileCols + t] = state.top_product[h] * scale.natural;
      p.stats[at * 2 * kTileCols + kTileCols + t] = rest * shrink;
      p.tops[at * kTileCols + t] = state.top[h];
    }
    if (p.with_values) {
      float* acc = p.accs + (at * kTileCols + t) * dim;
#pragma unroll
      for (int32_t n = 0; n < kDim / 8; ++n) {
        const int32_t d = n * 8 + c;
        if (d < dim) {
          store_vector(acc + d, float2{state.acc[n][2 * h] * shrink, state.acc[n][2 * h + 1] * shrink});
        }
      }
    }
  }
}

}  // namespace

DType mma_type(const ObserveArgs& args) {
  const int32_t dim = args.shape.head_dim;
  if (args.cache.pool && args.cache.slots < kLeastSlots) return DType::kF32;
  return dim <= kMaxDim && is_aligned(args.items, dim) ? common_type(args.items, args.cache) : DType::kF32;
}

void observe_units(Context& context, const ObserveParams& params, DType type) {
  const int32_t group = params.shape.group;
  // Groups of heads of which some are the launch's.
  const int32_t cells = (params.first_unit + params.num_units - 1) / group - params.first_unit / group + 1;
  const Grid grid{.x = static_cast<uint32_t>(cells * ((group + 1) / 2)),
                  .y = static_cast<uint32_t>(params.max_splits)};
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
