// What score_indicator multiplies rows with, made once an op by score_operands.cu: the b operands of its products as a warp holds
// them, 16 x 16 at a time, a lane's 16 bytes beside the next lane's, and what it wants to know of each query.
//   fragment   b of rows k = 16 i .. 16 i + 15 and columns n = 16 j .. 16 j + 15: lane 4 g + c has (k c0, n g) (k c1, n g)
//              (k c0, n g + 8) (k c1, n g + 8), c0 and c1 two rows each
//   by rows    c0 = 4 c, 4 c + 1 and c1 = 4 c + 2, 4 c + 3, for the other operand is of K or V: a lane then has 8 bytes of a row
//              that lie side by side
#pragma once

#include "kernels/cuda/eviction/score_view.h"

namespace restkv::cuda {

constexpr int32_t kMaxScoreDim = 128;
constexpr int32_t kSide = 16;            // of a fragment
constexpr int32_t kFragmentBytes = 512;  // of 16 bits

// Of 32 queries of a head. z = R_g^T p: p u = z (v - v_mean).
struct QueryStats {
  float lse[kTileCols];    // in units of log2; +inf: it sees nothing, or is not there
  float base[kTileCols];   // ||p||^2 + 2 z v_mean
  float near[kTileCols];   // kNear ||p||^2
  float scale[kTileCols];  // -2 times the power of two over which z is held
  // in the reduction over all queries, 0: skipped; divided by ||R_g o|| where that is asked for, and kRms by its square
  float factor[kTileCols];
  float top_weight[kTileCols];  // what the top row has in place of a / (1 - a); +inf: it is mandatory
  int32_t top[kTileCols];       // row that holds more than half of the attention; -1: none
  int32_t position[kTileCols];  // beyond the last query its own
  int32_t num_seeing[4];  // of all queries of the head, four times: no byte of what is copied stays unwritten
};
static_assert(sizeof(QueryStats) % 16 == 0);

// Of one item, all in the workspace; D padded to kDim, n = kDim / 16, blocks = ceil(Q / 32).
struct OperandsView {
  // [H] fragments by rows of R_g over `scale`, halves of f16: block column by block column the blocks on and below the diagonal,
  // high, then the low halves of the first kLowBlocks of them; behind all columns the other low halves. Items of a layer share them.
  std::byte* projection;
  std::byte* queries;  // [H][blocks][n][z: 2 x (high, low) | q: 2], by rows: halves of f16 and the rows' type
  float* offset;  // [H][2][kDim] -R_g v_mean over `scale`, with the low halves of kLowBlocks, and with all
  float* scale;   // [H] powers of two
  QueryStats* stats;         // [H][blocks]
  int32_t makes_projection;  // the first item of its layer does
};

constexpr int32_t kQueryFragments = 6;  // of a block column: z, then q

// A distance below this part of ||p||^2 + ||u||^2 has lost digits as an expanded square.
constexpr float kNear = 1.0f / 16.0f;
// Of a block column of R_g, from the diagonal on, which score_indicator multiplies in both halves whatever the distance.
constexpr int32_t kLowBlocks = 1;

constexpr int64_t projection_bytes(int32_t blocks_of_dim) {
  return int64_t{blocks_of_dim} * (blocks_of_dim + 1) * kFragmentBytes;
}
// Blocks on and below the diagonal of the block columns before column i.
__device__ __host__ constexpr int32_t blocks_before(int32_t blocks_of_dim, int32_t i) {
  return i * blocks_of_dim - i * (i - 1) / 2;
}
// Fragments of these columns: those that come first, and the low halves that come last.
__device__ __host__ constexpr int32_t fragments_before(int32_t blocks_of_dim, int32_t i) {
  const int32_t of_more = blocks_of_dim < kLowBlocks ? 0 : blocks_of_dim - kLowBlocks + 1;  // columns
  const int32_t cut = i < of_more ? i : of_more;
  return 2 * blocks_before(blocks_of_dim, i) - blocks_before(blocks_of_dim, cut) + cut * kLowBlocks;
}
__device__ __host__ constexpr int32_t rest_before(int32_t blocks_of_dim, int32_t i) {
  return 2 * blocks_before(blocks_of_dim, i) - fragments_before(blocks_of_dim, i);
}
// The fragment of the low half of block (k, i).
__device__ __host__ constexpr int32_t low_fragment(int32_t blocks_of_dim, int32_t k, int32_t i) {
  if (k - i < kLowBlocks) return fragments_before(blocks_of_dim, i) + blocks_of_dim - i + (k - i);
  return fragments_before(blocks_of_dim, blocks_of_dim) + rest_before(blocks_of_dim, i) + (k - i) -
         kLowBlocks;
}

// Fills the views of a launch's items [grid.z].
template <int32_t kDim>
void make_score_operands(Context& context, const ScoreParams& params, const OperandsView* operands,
                         int32_t num_heads, int32_t num_items, int32_t query_blocks);

}  // namespace restkv::cuda
