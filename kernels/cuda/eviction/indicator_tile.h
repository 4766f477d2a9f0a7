// What a warp of score_indicator does with its 32 rows: the stages of a block's ring, the products of a stage, and what becomes of their
// sums (formulas and shapes: score_indicator.cu).
#pragma once

#include <type_traits>

#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/eviction/halves.h"
#include "kernels/cuda/eviction/score_operands.h"

namespace restkv::cuda {

inline constexpr int32_t kScoreThreads = 128;
inline constexpr int32_t kScoreWarps = kScoreThreads / 32;
inline constexpr int32_t kRowTiles = 2;                         // of 16 rows, of a warp
inline constexpr int32_t kWarpRows = 16 * kRowTiles;            //
inline constexpr int32_t kScoreRows = kScoreWarps * kWarpRows;  // of a block
inline constexpr int32_t kScoreStages = 2;
inline constexpr int32_t kQueryTiles = kTileCols / 8;
static_assert(kScoreRows == kScoreThreads, "a thread looks up a row's place");

// A warp's, where it makes distances value by value.
struct ExactPart {
  alignas(16) float u[16][kSide];  // of 16 rows, 16 columns
  float sums[16][kTileCols];       // of a row and a query
};

// What passes through the ring for a head: its R_g, whole pairs of block columns at a time, then for each 32 queries their fragments,
// a few block columns at a time.
template <int32_t kBlocks>
struct Stages {
  static constexpr int32_t kProjection = kBlocks == 4 ? 1 : kLowBlocks < 3 ? 2 : 3;
  static constexpr int32_t kQueries = kBlocks / 4;
  static constexpr int32_t kChunks = kBlocks / kQueries;  // block columns of queries

  // Block column with which the s-th stage of R_g begins, the one behind the last for s = kProjection.
  static __device__ __host__ constexpr int32_t first_column(int32_t s) {
    return s == kProjection ? kBlocks : 2 * s;
  }
  static __device__ __host__ constexpr int32_t fragments(int32_t s) {
    return fragments_before(kBlocks, first_column(s + 1)) - fragments_before(kBlocks, first_column(s));
  }
  static constexpr int32_t most_fragments() {
    int32_t most = kChunks * kQueryFragments;
    for (int32_t s = 0; s < kProjection; ++s) most = fragments(s) > most ? fragments(s) : most;
    return most;
  }
};

template <int32_t kDim>
struct IndicatorShared {
  static constexpr int32_t kBlocks = kDim / kSide;
  struct Stage {
    uint4 fragments[Stages<kBlocks>::most_fragments()][32];
    float offset[kDim];
  };
  uint4 keys[kScoreWarps][kRowTiles][kBlocks][32];  // a lane's own
  Stage ring[kScoreStages];
  QueryStats stats[kScoreStages];  // of this block of queries and those on their way
  ExactPart exact[kScoreWarps];
  const std::byte* row_keys[kScoreRows];
  const std::byte* row_values[kScoreRows];
  int32_t positions[kScoreRows];  // of the rows
  uint32_t scored[kScoreWarps];   // a bit for each row whose place depends on its score
};
static_assert(sizeof(IndicatorShared<kMaxScoreDim>) <= (99u << 10), "sm_86");
static_assert(fits_multiprocessor(sizeof(IndicatorShared<kMaxScoreDim>), 2));

// The rows of a lane: 16 m + g + 8 h of its warp's at [m][h].
struct LaneRows {
  int32_t first;  // of the item, at [0][0]
  int32_t num_rows;
  const int32_t* positions;  // in shared memory, of the row at [0][0] and those behind it

  __device__ __forceinline__ int32_t index(int32_t m, int32_t h) const { return first + 16 * m + 8 * h; }
  __device__ __forceinline__ int32_t position(int32_t m, int32_t h) const {
    return positions[16 * m + 8 * h];
  }
  __device__ __forceinline__ bool is_there(int32_t m, int32_t h) const { return index(m, h) < num_rows; }
};

// Columns [16 i, 16 i + 16) of two rows of K or V as an a operand "by rows" (score_operands.h); null: zeros.
__device__ __forceinline__ uint4 row_fragment(const std::byte* const (&rows)[2], int32_t dim, int32_t i) {
  const int32_t d = i * kSide + static_cast<int32_t>(lane_idx()) % 4 * 4;
  uint2 x[2];
#pragma unroll
  for (int32_t h = 0; h < 2; ++h) {
    x[h] = {0, 0};
    if (rows[h] && d < dim) x[h] = load_vector<uint2>(rows[h] + int64_t{2} * d);
  }
  return {x[0].x, x[1].x, x[0].y, x[1].y};
}

template <class T>
__device__ __forceinline__ MmaA<T> a_of(const uint4& x) {
  return {{x.x, x.y, x.z, x.w}};
}
// The two 16 x 8 operands of a fragment.
template <class T>
__device__ __forceinline__ void b_of(const uint4& x, MmaB<T> (&b)[2]) {
  b[0] = {{x.x, x.y}};
  b[1] = {{x.z, x.w}};
}

// The lane's part of V as f16, each row over a power of two of which inverse[m][h] is the inverse, that of the row's numbers or of
// v_mean, whichever are larger. Rows of f16 are what they are.
template <class T, int32_t kBlocks>
__device__ __forceinline__ void scale_values(const float* mean, int32_t dim,
                                             MmaA<f16> (&v)[kRowTiles][kBlocks],
                                             float (&inverse)[kRowTiles][2]) {
  float largest_mean = 0.0f;
  if constexpr (!std::is_same_v<T, f16>) {
    for (auto d = static_cast<int32_t>(lane_idx()); d < dim; d += kWarpSize)
      largest_mean = fmaxf(largest_mean, fabs(mean[d]));
    largest_mean = warp_max(largest_mean);
  }
#pragma unroll
  for (int32_t m = 0; m < kRowTiles; ++m) {
    inverse[m][0] = inverse[m][1] = 1.0f;
    if constexpr (std::is_same_v<T, f16>) continue;
    uint32_t left[2] = {0, 0},
             right[2] = {0, 0};  // of pairs; numbers of one sign are in the order of their bits
#pragma unroll
    for (int32_t i = 0; i < kBlocks; ++i) {
#pragma unroll
      for (int32_t r = 0; r < 4; ++r) {
        left[r % 2] = max(left[r % 2], v[m][i].r[r] << 16 & 0x7FFF0000u);
        right[r % 2] = max(right[r % 2], v[m][i].r[r] & 0x7FFFFFFFu);
      }
    }
#pragma unroll
    for (int32_t h = 0; h < 2; ++h) {
      uint32_t largest = max(left[h], right[h] & 0x7FFF0000u);
      largest = max(largest, shuffle_xor(largest, 1));
      largest = max(largest, shuffle_xor(largest, 2));
      float scale;
      f16_scale_of(fmaxf(bits_to_f32(largest), largest_mean), scale, inverse[m][h]);
    }
#pragma unroll
    for (int32_t i = 0; i < kBlocks; ++i) {
#pragma unroll
      for (int32_t r = 0; r < 4; ++r) {
        const float2 x = unpack2<T>(v[m][i].r[r]);
        v[m][i].r[r] = pack2<f16>(x.x * inverse[m][r % 2], x.y * inverse[m][r % 2]);
      }
    }
  }
}

// Copies stages into the ring, one after the other.
template <int32_t kDim>
struct StageCopy {
  using Shared = IndicatorShared<kDim>;
  static constexpr int32_t kBlocks = Shared::kBlocks;
  using Plan = Stages<kBlocks>;
  // of the operands, from this thread's first 16 bytes on
  const std::byte* projection;
  const std::byte* queries;
  const std::byte* offset;
  const std::byte* stats;
  Shared& shared;
  int32_t query_blocks;  // places of an item in the operands
  int32_t slot = 0;
  int32_t stats_slot = 0;

  __device__ __forceinline__ StageCopy(const OperandsView& operands, Shared& memory, int32_t blocks)
      : projection(operands.projection + threadIdx.x * 16),
        queries(operands.queries + threadIdx.x * 16),
        offset(reinterpret_cast<const std::byte*>(operands.offset) + threadIdx.x * 16),
        stats(reinterpret_cast<const std::byte*>(operands.stats) + threadIdx.x * 16),
        shared(memory),
        query_blocks(blocks) {}

  template <int32_t kBytes>
  static __device__ __forceinline__ void copy(void* to, const std::byte* from) {
    auto* own = static_cast<std::byte*>(to) + threadIdx.x * 16;
#pragma unroll
    for (int32_t i = 0; i < kBytes; i += kScoreThreads * 16) {
      if (i + kScoreThreads * 16 <= kBytes || static_cast<int32_t>(threadIdx.x) * 16 < kBytes - i)
        cp_async16(own + i, from + i);
    }
  }

  template <int32_t kStage>
  __device__ __forceinline__ void add_projection(int32_t head) {
    copy<Plan::fragments(kStage) * kFragmentBytes>(
        shared.ring[slot].fragments,
        projection + head * projection_bytes(kBlocks) +
            fragments_before(kBlocks, Plan::first_column(kStage)) * kFragmentBytes);
    copy<kDim * 4>(shared.ring[slot].offset, offset + int64_t{2} * head * kDim * 4);
    slot ^= 1;
  }
  template <int32_t kPart>
  __device__ __forceinline__ void add_queries(int32_t head, int32_t block) {
    constexpr int32_t kBytes = Plan::kChunks * kQueryFragments * kFragmentBytes;
    const int64_t at = int64_t{head} * query_blocks + block;
    copy<kBytes>(shared.ring[slot].fragments, queries + at * (Plan::kQueries * kBytes) + kPart * kBytes);
    if constexpr (kPart == 0) {
      copy<sizeof(QueryStats)>(&shared.stats[stats_slot], stats + at * int64_t{sizeof(QueryStats)});
      stats_slot ^= 1;
    }
    slot ^= 1;
  }
};

// What a lane gathers of 32 queries of a head.
struct LaneSums {
  float s[kRowTiles][kQueryTiles][4];  // q k, then a / (1 - a)
  float x[kRowTiles][kQueryTiles][4];  // z v, then ||p - u||^2
};

// Block columns kFirst and kFirst + 1 of u = R_g (v - v_mean), of which the squares are wanted. `fragments`: from theirs on.
template <int32_t kBlocks, int32_t kFirst>
__device__ __forceinline__ void add_squares(const uint4 (*fragments)[32], const float* offset,
                                            const MmaA<f16> (&v)[kRowTiles][kBlocks],
                                            const float (&inverse)[kRowTiles][2],
                                            float (&square)[kRowTiles][2]) {
  constexpr int32_t kBefore = fragments_before(kBlocks, kFirst);
  constexpr int32_t kLeft = -kFirst, kRight = fragments_before(kBlocks, kFirst + 1) - kBefore - kFirst - 1;
  const uint32_t lane = lane_idx();
  float u[kRowTiles][4][4];
#pragma unroll
  for (int32_t n = 0; n < 4; ++n) {
    const float2 o = load_vector<float2>(offset + kFirst * kSide + 8 * n + lane % 4 * 2);
#pragma unroll
    for (int32_t m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int32_t h = 0; h < 2; ++h) {
        u[m][n][2 * h] = o.x * inverse[m][h];
        u[m][n][2 * h + 1] = o.y * inverse[m][h];
      }
    }
  }
  const auto add = [&](int32_t n, int32_t k, int32_t fragment) {
    MmaB<f16> r[2];
    b_of(load_vector<uint4>(&fragments[fragment][lane]), r);
#pragma unroll
    for (int32_t m = 0; m < kRowTiles; ++m) {
      mma(u[m][n], v[m][k], r[0]);
      mma(u[m][n + 1], v[m][k], r[1]);
    }
  };
#pragma unroll
  for (int32_t k = kFirst; k < kBlocks; ++k) {
    if (k - kFirst < kLowBlocks) add(0, k, kLeft + kBlocks - kFirst + k);
    if (k > kFirst && k - kFirst - 1 < kLowBlocks) add(2, k, kRight + kBlocks - kFirst - 1 + k);
  }
#pragma unroll
  for (int32_t k = kFirst; k < kBlocks; ++k) {
    add(0, k, kLeft + k);
    if (k > kFirst) add(2, k, kRight + k);
  }
#pragma unroll
  for (int32_t m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int32_t n = 0; n < 4; ++n) {
#pragma unroll
      for (int32_t e = 0; e < 4; ++e) square[m][e / 2] = fma_rn(u[m][n][e], u[m][n][e], square[m][e / 2]);
    }
  }
}

// The block columns of a stage.
template <int32_t kBlocks, int32_t kFirst, int32_t kEnd>
__device__ __forceinline__ void add_all_squares(const uint4 (*fragments)[32], const float* offset,
                                                const MmaA<f16> (&v)[kRowTiles][kBlocks],
                                                const float (&inverse)[kRowTiles][2],
                                                float (&square)[kRowTiles][2]) {
  if constexpr (kFirst < kEnd) {
    add_squares<kBlocks, kFirst>(fragments, offset, v, inverse, square);
    constexpr int32_t kSize = fragments_before(kBlocks, kFirst + 2) - fragments_before(kBlocks, kFirst);
    add_all_squares<kBlocks, kFirst + 2, kEnd>(fragments + kSize, offset, v, inverse, square);
  }
}

// Block columns [kFirst, kFirst + kChunks) of q k and of z v.
template <class T, int32_t kBlocks, int32_t kFirst>
__device__ __forceinline__ void add_queries(const uint4 (*fragments)[32], const uint4 (*keys)[kBlocks][32],
                                            const MmaA<f16> (&v)[kRowTiles][kBlocks], LaneSums& sums) {
  const uint32_t lane = lane_idx();
#pragma unroll
  for (int32_t i = kFirst; i < kFirst + Stages<kBlocks>::kChunks; ++i) {
    const int32_t first = (i - kFirst) * kQueryFragments;
    MmaA<T> key[kRowTiles];
#pragma unroll
    for (int32_t m = 0; m < kRowTiles; ++m) key[m] = a_of<T>(load_vector<uint4>(&keys[m][i][lane]));
#pragma unroll
    for (int32_t j = 0; j < 2; ++j) {
      MmaB<T> q[2];
      b_of(load_vector<uint4>(&fragments[first + 4 + j][lane]), q);
#pragma unroll
      for (int32_t m = 0; m < kRowTiles; ++m) {
        mma(sums.s[m][2 * j], key[m], q[0]);
        mma(sums.s[m][2 * j + 1], key[m], q[1]);
      }
    }
#pragma unroll
    for (int32_t half = 1; half >= 0; --half) {
#pragma unroll
      for (int32_t j = 0; j < 2; ++j) {
        MmaB<f16> z[2];
        b_of(load_vector<uint4>(&fragments[first + 2 * j + half][lane]), z);
#pragma unroll
        for (int32_t m = 0; m < kRowTiles; ++m) {
          mma(sums.x[m][2 * j], v[m][i], z[0]);
          mma(sums.x[m][2 * j + 1], v[m][i], z[1]);
        }
      }
    }
  }
}

__device__ __forceinline__ int32_t query_of(int32_t n, int32_t i) {
  return 8 * n + static_cast<int32_t>(lane_idx()) % 4 * 2 + i % 2;
}

// f(m, n, i) for each pair of a lane: that of row [m][i / 2] and query_of(n, i).
template <class F>
__device__ __forceinline__ void for_each_pair(const F& f) {
#pragma unroll
  for (int32_t m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int32_t n = 0; n < kQueryTiles; ++n) {
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) f(m, n, i);
    }
  }
}

// Of a lane's rows [m][h].
struct RowNumbers {
  float inverse[kRowTiles][2];  // of the power of two over which V is held
  float unit[kRowTiles][2];     // that power
  float square[kRowTiles][2];   // ||u||^2
};

// From q k to a / (1 - a), and from z v to distances; whether one of the lane's is of a near pair.
__device__ __forceinline__ bool weigh(const ScoreParams& p, const QueryStats& stats, const LaneRows& rows,
                                      const RowNumbers& numbers, LaneSums& sums) {
  if (p.shape.softcap > 0.0f) {
    // softcap tanh(y) = softcap - 2 softcap / (1 + e^2y)
    const float slope = 2.0f * kLog2e * p.shape.scale / p.shape.softcap;
    for_each_pair([&](int32_t m, int32_t n, int32_t i) {
      float& x = sums.s[m][n][i];
      x = fma_rn(divide_approx(-2.0f, 1.0f + exp2_approx(x * slope)), p.shape.softcap, p.shape.softcap);
    });
  }
  // Most rows are seen by all queries.
  const int32_t window = p.shape.window, oldest = stats.position[0], newest = stats.position[kTileCols - 1];
  bool is_hidden = false;
#pragma unroll
  for (int32_t m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int32_t h = 0; h < 2; ++h) {
      is_hidden = is_hidden || !rows.is_there(m, h) || rows.position(m, h) > oldest ||
                  (window != 0 && newest - rows.position(m, h) >= window);
    }
  }
  if (any(is_hidden)) {
    for_each_pair([&](int32_t m, int32_t n, int32_t i) {
      const int32_t away = stats.position[query_of(n, i)] - rows.position(m, i / 2);
      const bool is_out = !rows.is_there(m, i / 2) || away < 0 || (window != 0 && away >= window);
      sums.s[m][n][i] = is_out ? -kInfinity : sums.s[m][n][i];
    });
  }
  const float slope = -kLog2e * (p.shape.softcap > 0.0f ? 1.0f : p.shape.scale);
  bool is_near = false;
#pragma unroll
  for (int32_t n = 0; n < kQueryTiles; ++n) {
    const int32_t t = query_of(n, 0);
    const float2 lses = load_vector<float2>(stats.lse + t), scales = load_vector<float2>(stats.scale + t),
                 bases = load_vector<float2>(stats.base + t), nears = load_vector<float2>(stats.near + t);
#pragma unroll
    for (int32_t b = 0; b < 2; ++b) {
      const float lse = b == 0 ? lses.x : lses.y, scale = b == 0 ? scales.x : scales.y,
                  base = b == 0 ? bases.x : bases.y, near = b == 0 ? nears.x : nears.y;
#pragma unroll
      for (int32_t m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int32_t h = 0; h < 2; ++h) {
          float& s = sums.s[m][n][2 * h + b];
          float& x = sums.x[m][n][2 * h + b];
          // a / (1 - a) = 1 / (1 / a - 1), where a is at most 1/2; 0 for a = 0
          s = divide_approx(1.0f, exp2_approx(fma_rn(s, slope, lse)) - 1.0f);
          x = fma_rn(x * numbers.unit[m][h], scale, numbers.square[m][h] + base);
          is_near |= !(x > fma_rn(numbers.square[m][h], kNear, near));  // a NaN, too
        }
      }
    }
  }
  return is_near;
}

// Bits 4 n + i of near[m]: pairs whose distance is to be made exactly, those of the top rows of queries among them, to which their
// weights are given.
__device__ __forceinline__ void find_near(const QueryStats& stats, const LaneRows& rows,
                                          const RowNumbers& numbers, LaneSums& sums,
                                          uint32_t (&near)[kRowTiles]) {
  near[0] = near[1] = 0;
  for_each_pair([&](int32_t m, int32_t n, int32_t i) {
    const int32_t t = query_of(n, i);
    const bool is_top = stats.top[t] == rows.index(m, i / 2);
    float& s = sums.s[m][n][i];
    const bool is_near = !(sums.x[m][n][i] > fma_rn(numbers.square[m][i / 2], kNear, stats.near[t]));
    // of what nobody looks at nothing
    near[m] |= is_top || (is_near && s > 0.0f) ? 1u << (4 * n + i) : 0u;
    s = is_top ? stats.top_weight[t] : s;
  });
}

}  // namespace restkv::cuda
