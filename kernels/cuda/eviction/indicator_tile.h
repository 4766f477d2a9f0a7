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
inline constexpr int32_t kScoreStages = 3;
inline constexpr int32_t kQueryTiles = kTileCols / 8;
inline constexpr float kNear = 1.0f / 64.0f;
static_assert(kScoreRows == kScoreThreads, "a thread looks up a row's place");

// A warp's, where it makes distances value by value.
struct ExactPart {
  alignas(16) float u[16][kSide];  // of 16 rows, 16 columns
  float sums[16][kTileCols];       // of a row and a query
};

template <int32_t kDim>
struct IndicatorShared {
  static constexpr int32_t kBlocks = kDim / kSide;
  struct Stage {
    uint4 projection[kBlocks][2][32];  // a block column of R_g from the diagonal on, high and low
    uint4 queries[kQueryFragments][32];
    float offset[kSide];
    float scale[kSide];
  };
  uint4 keys[kScoreWarps][kRowTiles][kBlocks][32];  // a lane's own
  Stage ring[kScoreStages];
  QueryStats stats[kScoreStages];  // of this block of queries and those on their way
  ExactPart exact[kScoreWarps];
  int32_t positions[kScoreRows];  // of the rows
  float scores[kScoreRows];       // over the heads so far
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

// The stages of a block in their order: chunks of 16 columns of each 32 queries of each head of the group.
template <class T, int32_t kDim>
struct StageCopy {
  using Shared = IndicatorShared<kDim>;
  static constexpr int32_t kBlocks = Shared::kBlocks;
  const OperandsView& operands;
  Shared& shared;
  int32_t query_blocks;  // places of an item in the operands
  int32_t item_blocks;   // of this item
  int32_t num_chunks;
  int32_t end;  // the head behind the group
  int32_t head;
  int32_t block = 0, chunk = 0;
  int32_t slot = 0;
  int32_t stats_slot = 0;

  static __device__ __forceinline__ void copy(void* to, const void* from, int32_t bytes) {
#pragma unroll 1
    for (int32_t i = static_cast<int32_t>(threadIdx.x) * 16; i < bytes; i += kScoreThreads * 16) {
      cp_async16(static_cast<std::byte*>(to) + i, static_cast<const std::byte*>(from) + i);
    }
  }

  __device__ __forceinline__ void next() {
    if (head < end) {
      auto& stage = shared.ring[slot];
      copy(stage.projection,
           operands.projection + head * projection_bytes(kBlocks) + projection_offset(kBlocks, chunk),
           (kBlocks - chunk) * 2 * kFragmentBytes);
      const int64_t queries = int64_t{head} * query_blocks + block;
      copy(stage.queries, operands.queries + (queries * kBlocks + chunk) * kQueryFragments * kFragmentBytes,
           kQueryFragments * kFragmentBytes);
      copy(stage.offset, operands.offset + head * kDim + chunk * kSide, kSide * 4);
      if constexpr (std::is_same_v<T, f16>)
        copy(stage.scale, operands.scale + head * kDim + chunk * kSide, kSide * 4);
      if (chunk == 0) {
        copy(&shared.stats[stats_slot], operands.stats + queries, sizeof(QueryStats));
        stats_slot = stats_slot + 1 == kScoreStages ? 0 : stats_slot + 1;
      }
      slot = slot + 1 == kScoreStages ? 0 : slot + 1;
      if (++chunk == num_chunks) {
        chunk = 0;
        if (++block == item_blocks) {
          block = 0;
          ++head;
        }
      }
    }
    cp_async_commit();
  }
};

// What a lane gathers of 32 queries of a head.
struct LaneSums {
  float s[kRowTiles][kQueryTiles][4];  // q k, then a / (1 - a)
  float x[kRowTiles][kQueryTiles][4];  // p u, then ||p - u||^2
  float square[kRowTiles][2];          // of u, of this lane's columns, then ||u||^2
};

// u of columns [16 i, 16 i + 16) of tiles of 16 rows. `fragments`: a lane's, of R_g from block (i, i) on; values(m, k): of V.
template <class T, int32_t kBlocks, int32_t kCount, class Values>
__device__ __forceinline__ void project(const uint4* fragments, const float* offset, const float* scale,
                                        int32_t i, const Values& values, float (&u)[kCount][2][4]) {
  const auto c = static_cast<int32_t>(lane_idx()) % 4 * 2;
#pragma unroll
  for (int32_t n = 0; n < 2; ++n) {
    const float2 o = load_vector<float2>(offset + 8 * n + c);
#pragma unroll
    for (int32_t m = 0; m < kCount; ++m) {
      u[m][n][0] = u[m][n][2] = o.x;
      u[m][n][1] = u[m][n][3] = o.y;
    }
  }
#pragma unroll
  for (int32_t k = 0; k < kBlocks; ++k) {
    if (k < i) continue;
    MmaA<T> v[kCount];
    MmaB<T> high[2], low[2];
#pragma unroll
    for (int32_t m = 0; m < kCount; ++m) v[m] = values(m, k);
    b_of(load_vector<uint4>(fragments + (k - i) * 64), high);
    b_of(load_vector<uint4>(fragments + (k - i) * 64 + 32), low);
#pragma unroll
    for (int32_t m = 0; m < kCount; ++m) {
      mma(u[m][0], v[m], low[0]);
      mma(u[m][1], v[m], low[1]);
    }
#pragma unroll
    for (int32_t m = 0; m < kCount; ++m) {
      mma(u[m][0], v[m], high[0]);
      mma(u[m][1], v[m], high[1]);
    }
  }
  if constexpr (std::is_same_v<T, f16>) {
#pragma unroll
    for (int32_t n = 0; n < 2; ++n) {
      const float2 by = load_vector<float2>(scale + 8 * n + c);
#pragma unroll
      for (int32_t m = 0; m < kCount; ++m) {
        u[m][n][0] *= by.x;
        u[m][n][1] *= by.y;
        u[m][n][2] *= by.x;
        u[m][n][3] *= by.y;
      }
    }
  }
}

// One stage: 16 columns of the logits' sum, and of u and what is made of it.
template <class T, int32_t kDim>
__device__ __forceinline__ void add_chunk(const typename IndicatorShared<kDim>::Stage& stage,
                                          const uint4 (*keys)[kDim / kSide][32], int32_t i,
                                          const MmaA<T> (&v)[kRowTiles][kDim / kSide], LaneSums& sums) {
  constexpr int32_t kBlocks = kDim / kSide;
  const uint32_t lane = lane_idx();
  MmaA<T> key[kRowTiles];
#pragma unroll
  for (int32_t m = 0; m < kRowTiles; ++m) key[m] = a_of<T>(load_vector<uint4>(&keys[m][i][lane]));
#pragma unroll
  for (int32_t j = 0; j < 2; ++j) {
    MmaB<T> q[2];
    b_of(load_vector<uint4>(&stage.queries[4 + j][lane]), q);
#pragma unroll
    for (int32_t m = 0; m < kRowTiles; ++m) {
      mma(sums.s[m][2 * j], key[m], q[0]);
      mma(sums.s[m][2 * j + 1], key[m], q[1]);
    }
  }
  float u[kRowTiles][2][4];
  project<T, kBlocks>(
      &stage.projection[0][0][lane], stage.offset, stage.scale, i,
      [&](int32_t m, int32_t k) { return v[m][k]; }, u);
  MmaA<bf16> high[kRowTiles], low[kRowTiles];
#pragma unroll
  for (int32_t m = 0; m < kRowTiles; ++m) {
    split_accumulators(u[m][0], u[m][1], high[m], low[m]);
#pragma unroll
    for (int32_t i = 0; i < 8; ++i) {
      const float x = u[m][i / 4][i % 4];
      float& square = sums.square[m][i % 4 / 2];
      square = fma_rn(x, x, square);
    }
  }
#pragma unroll
  for (int32_t j = 0; j < 2; ++j) {
    MmaB<bf16> p_high[2], p_low[2];
    b_of(load_vector<uint4>(&stage.queries[2 * j][lane]), p_high);
    b_of(load_vector<uint4>(&stage.queries[2 * j + 1][lane]), p_low);
#pragma unroll
    for (int32_t n = 0; n < 2; ++n) {
#pragma unroll
      for (int32_t m = 0; m < kRowTiles; ++m) mma(sums.x[m][2 * j + n], low[m], p_high[n]);
    }
#pragma unroll
    for (int32_t n = 0; n < 2; ++n) {
#pragma unroll
      for (int32_t m = 0; m < kRowTiles; ++m) mma(sums.x[m][2 * j + n], high[m], p_low[n]);
    }
#pragma unroll
    for (int32_t n = 0; n < 2; ++n) {
#pragma unroll
      for (int32_t m = 0; m < kRowTiles; ++m) mma(sums.x[m][2 * j + n], high[m], p_high[n]);
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

// From q k to a / (1 - a), and from p u to distances. Bits 4 n + i of near[m]: pairs whose distance is to be made exactly.
__device__ __forceinline__ void weigh(const ScoreParams& p, const QueryStats& stats, const LaneRows& rows,
                                      LaneSums& sums, uint32_t (&near)[kRowTiles]) {
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
#pragma unroll
  for (int32_t m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int32_t h = 0; h < 2; ++h) {
      float& square = sums.square[m][h];
      square += shuffle_xor(square, 1);
      square += shuffle_xor(square, 2);
    }
    near[m] = 0;
  }
  const float unit = p.shape.softcap > 0.0f ? kLog2e : p.shape.scale * kLog2e;
#pragma unroll
  for (int32_t n = 0; n < kQueryTiles; ++n) {
    const float2 lse = load_vector<float2>(stats.lse + query_of(n, 0));
    const float2 square = load_vector<float2>(stats.square + query_of(n, 0));
#pragma unroll
    for (int32_t m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
        float& s = sums.s[m][n][i];
        float& x = sums.x[m][n][i];
        const float a = exp2_approx(fma_rn(s, unit, i % 2 == 0 ? -lse.x : -lse.y));
        s = divide_approx(a, 1.0f - a);
        const float squares = sums.square[m][i / 2] + (i % 2 == 0 ? square.x : square.y);
        x = fma_rn(-2.0f, x, squares);
        // a NaN, too; of what nobody looks at nothing
        near[m] |= !(x > kNear * squares) && a > 0.0f ? 1u << (4 * n + i) : 0u;
      }
    }
  }
  // The top rows of queries.
  const int32_t first = rows.first - static_cast<int32_t>(lane_idx()) / 4;
  const int32_t top = stats.top[lane_idx()] - first;
  if (any(top >= 0 && top < kWarpRows)) {
    for_each_pair([&](int32_t m, int32_t n, int32_t i) {
      const int32_t t = query_of(n, i);
      const bool is_top = stats.top[t] == rows.index(m, i / 2);
      sums.s[m][n][i] = is_top ? stats.top_weight[t] : sums.s[m][n][i];
      near[m] |= is_top ? 1u << (4 * n + i) : 0u;
    });
  }
}

}  // namespace restkv::cuda
