// What score_indicator multiplies rows with, made once an op by score_operands.cu: the b operands of its products as a warp holds
// them, 16 x 16 at a time, a lane's 16 bytes beside the next lane's, and what it wants to know of each query.
//   fragment   b of rows k = 16 i .. 16 i + 15 and columns n = 16 j .. 16 j + 15: lane 4 g + c has (k c0, n g) (k c1, n g)
//              (k c0, n g + 8) (k c1, n g + 8), c0 and c1 two rows each
//   by rows    c0 = 4 c, 4 c + 1 and c1 = 4 c + 2, 4 c + 3 where the other operand is of K or V: a lane then has 8 bytes of a row
//              that lie side by side
//   by sums    c0 = 2 c, 2 c + 1 and c1 = 2 c + 8, 2 c + 9 where it is made of accumulators
#pragma once

#include "kernels/cuda/eviction/score_view.h"

namespace restkv::cuda {

constexpr int32_t kMaxScoreDim = 128;
constexpr int32_t kSide = 16;            // of a fragment
constexpr int32_t kFragmentBytes = 512;  // of 16 bits

// Of 32 queries of a head.
struct QueryStats {
  float lse[kTileCols];     // in units of log2; +inf: it sees nothing, or is not there
  float square[kTileCols];  // ||p||^2
  // in the reduction over all queries, 0: skipped; divided by ||R_g o|| where that is asked for, and kRms by its square
  float factor[kTileCols];
  float top_weight[kTileCols];  // what the top row has in place of a / (1 - a); +inf: it is mandatory
  int32_t top[kTileCols];       // row that holds more than half of the attention; -1: none
  int32_t position[kTileCols];  // beyond the last query its own
  int32_t num_seeing[4];        // of all queries of the head, four times: no byte of what is copied stays unwritten
};
static_assert(sizeof(QueryStats) % 16 == 0);

// Of one item, all in the workspace; D padded to kDim, n = kDim / 16, blocks = ceil(Q / 32).
struct OperandsView {
  // [H][n (n + 1) / 2][high, low] fragments by rows of R_g, block column by block column, of each the blocks on and below the
  // diagonal; items of a layer share them. The halves are of the rows' type, and where that is f16 of R_g over `scale`.
  std::byte* projection;
  std::byte* queries;  // [H][blocks][n][p: 2 x (high, low), by sums | q: 2, by rows]: bf16 and the rows' type
  float* offset;       // [H][kDim] -R_g v_mean, over `scale`, of R_g as the halves have it
  float* scale;        // [H][kDim] powers of two, one a column; bf16: not there
  QueryStats* stats;   // [H][blocks]
  int32_t makes_projection;  // the first item of its layer does
};

constexpr int32_t kQueryFragments = 6;  // of a block column: p, then q

constexpr int64_t projection_bytes(int32_t blocks_of_dim) {
  return int64_t{blocks_of_dim} * (blocks_of_dim + 1) * kFragmentBytes;
}
// Of block column i, from the head's first one.
__device__ __host__ constexpr int32_t projection_offset(int32_t blocks_of_dim, int32_t i) {
  return (i * blocks_of_dim - i * (i - 1) / 2) * 2 * kFragmentBytes;
}

// Fills the views of a launch's items [grid.z].
template <class T, int32_t kDim>
void make_score_operands(Context& context, const ScoreParams& params, const OperandsView* operands,
                         int32_t num_heads, int32_t num_items, int32_t query_blocks);

}  // namespace restkv::cuda
