// The operands of score_indicator (score_operands.h): R_g in halves with its product with v_mean, p = R_g (o - v_mean) in halves,
// queries, and what there is to know of each query.
// Each column of R_g in f16 is held over a power of two (halves.h). Without a projection R_g is the identity. A warp makes a block
// column of R_g, or 16 queries of a head; all it reads is asked for at once. Grid: (4 warps, head, item). Bound: latency of L2. No
// shared memory.
// Occupancy: score_operands_kernel 128 x 3.
#include <type_traits>

#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/eviction/halves.h"
#include "kernels/cuda/eviction/score_operands.h"

namespace restkv::cuda {
namespace {

constexpr int32_t kThreads = 128;
constexpr int32_t kWarps = kThreads / 32;

struct OperandParams {
  ScoreParams score;
  const OperandsView* operands;  // [grid.z]
  int32_t query_blocks;
};

// The lane's four pairs of a fragment, each number in two halves.
template <class T>
__device__ __forceinline__ void split_pairs(const float (&x)[4][2], uint4& high, uint4& low) {
  uint32_t highs[4], lows[4];
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) split_pair<T>(x[i][0], x[i][1], highs[i], lows[i]);
  high = {highs[0], highs[1], highs[2], highs[3]};
  low = {lows[0], lows[1], lows[2], lows[3]};
}

template <class T>
__device__ __forceinline__ float2 sum_of_halves(uint32_t high, uint32_t low) {
  const float2 x = unpack2<T>(high), y = unpack2<T>(low);
  return {x.x + y.x, x.y + y.y};
}

// Over the four lanes that share a column.
__device__ __forceinline__ float column_sum(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}
__device__ __forceinline__ float column_max(float x) {
  x = fmaxf(x, shuffle_xor(x, 1));
  return fmaxf(x, shuffle_xor(x, 2));
}

// Block column `column` of R_g.
template <class T, int32_t kDim>
__device__ __forceinline__ void make_projection(const ScoreParams& p, const ScoreView& item,
                                                const OperandsView& operands, int32_t head, int32_t column) {
  constexpr int32_t kBlocks = kDim / kSide;
  constexpr bool kIsScaled = std::is_same_v<T, f16>;
  const auto lane = static_cast<int32_t>(lane_idx());
  const int32_t g = lane / 4, c = lane % 4, dim = p.shape.dim;
  const float* r = item.projection ? item.projection + int64_t{head} * dim * item.projection_stride : nullptr;
  const float* mean = item.v_mean + int64_t{head / p.shape.group} * item.mean_stride;
  float x[kBlocks][4][2];  // pairs of b: (c0, g) (c1, g) (c0, g + 8) (c1, g + 8)
  float means[kBlocks][4];
#pragma unroll
  for (int32_t i = 0; i < kBlocks; ++i) {
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) {
      const int32_t d = i * kSide + 4 * c + j;
      means[i][j] = i >= column && d < dim ? mean[d] : 0.0f;
#pragma unroll
      for (int32_t h = 0; h < 2; ++h) {
        const int32_t e = column * kSide + 8 * h + g;
        float value = d == e ? 1.0f : 0.0f;
        if (r) value = i >= column && d < dim && e < dim ? r[d * item.projection_stride + e] : 0.0f;
        x[i][2 * h + j / 2][j % 2] = value;
      }
    }
  }
  float scale[2] = {1.0f, 1.0f}, inverse[2] = {1.0f, 1.0f};
  if constexpr (kIsScaled) {
#pragma unroll
    for (int32_t h = 0; h < 2; ++h) {
      float largest = 0.0f;
#pragma unroll
      for (int32_t i = 0; i < kBlocks; ++i) {
#pragma unroll
        for (int32_t j = 0; j < 4; ++j) largest = fmaxf(largest, fabs(x[i][2 * h + j / 2][j % 2]));
      }
      largest = column_max(largest);
      scale_of(largest, scale[h], inverse[h]);
    }
  }
  std::byte* out =
      operands.projection + head * projection_bytes(kBlocks) + projection_offset(kBlocks, column) + lane * 16;
  float sum[2] = {0.0f, 0.0f};
#pragma unroll
  for (int32_t i = 0; i < kBlocks; ++i) {
    if (i < column) continue;
#pragma unroll
    for (int32_t k = 0; k < 4; ++k) {
      x[i][k][0] *= inverse[k / 2];
      x[i][k][1] *= inverse[k / 2];
    }
    uint4 high, low;
    split_pairs<T>(x[i], high, low);
    if (operands.makes_projection) {
      std::byte* to = out + (i - column) * 2 * kFragmentBytes;
      store_vector(to, high);
      store_vector(to + kFragmentBytes, low);
    }
    const uint32_t highs[4] = {high.x, high.y, high.z, high.w}, lows[4] = {low.x, low.y, low.z, low.w};
#pragma unroll
    for (int32_t k = 0; k < 4; ++k) {
      const float2 value = sum_of_halves<T>(highs[k], lows[k]);
      sum[k / 2] = fma_rn(value.x, means[i][k % 2 * 2], sum[k / 2]);
      sum[k / 2] = fma_rn(value.y, means[i][k % 2 * 2 + 1], sum[k / 2]);
    }
  }
#pragma unroll
  for (int32_t h = 0; h < 2; ++h) {
    sum[h] = column_sum(sum[h]);
    const int32_t e = column * kSide + 8 * h + g;
    if (c != 0) continue;
    operands.offset[head * kDim + e] = -sum[h];
    if constexpr (kIsScaled) operands.scale[head * kDim + e] = scale[h];
  }
}

// p and q of queries [first, first + 16), pair `pair` of block `block`.
template <int32_t kDim>
__device__ __forceinline__ void make_queries(const ScoreParams& p, const ScoreView& item,
                                             const OperandsView& operands, int32_t head, int32_t query_blocks,
                                             int32_t block, int32_t pair) {
  constexpr int32_t kBlocks = kDim / kSide;
  const auto lane = static_cast<int32_t>(lane_idx());
  const int32_t g = lane / 4, c = lane % 4, dim = p.shape.dim;
  const int32_t first = block * kTileCols + pair * kSide;
  const std::byte* rows[2] = {nullptr, nullptr};
#pragma unroll
  for (int32_t h = 0; h < 2; ++h) {
    const int32_t t = first + 8 * h + g;
    DType dtype = DType::kF32;  // T
    if (t < item.queries.num_queries)
      rows[h] = query_at(item.queries, p.pool, head, p.shape.group, dim, t, dtype);
  }
  float x[kBlocks][4][2];
  uint2 q[kBlocks][2];
#pragma unroll
  for (int32_t i = 0; i < kBlocks; ++i) {
#pragma unroll
    for (int32_t h = 0; h < 2; ++h) {
      const int32_t t = first + 8 * h + g, d = i * kSide + 4 * c;
#pragma unroll
      for (int32_t j = 0; j < 4; ++j) {
        const int32_t e = i * kSide + j / 2 * 8 + 2 * c + j % 2;
        x[i][2 * h + j / 2][j % 2] =
            e < dim && rows[h] ? item.p[(int64_t{head} * dim + e) * item.p_stride + t] : 0.0f;
      }
      q[i][h] = {0, 0};
      if (d < dim && rows[h]) q[i][h] = load_vector<uint2>(rows[h] + int64_t{2} * d);
    }
  }
  std::byte* out = operands.queries +
                   (int64_t{head} * query_blocks + block) * kBlocks * kQueryFragments * kFragmentBytes +
                   lane * 16;
  float square[2] = {0.0f, 0.0f};
#pragma unroll
  for (int32_t i = 0; i < kBlocks; ++i) {
    uint4 high, low;
    split_pairs<bf16>(x[i], high, low);
    std::byte* to = out + i * kQueryFragments * kFragmentBytes;
    store_vector(to + 2 * pair * kFragmentBytes, high);
    store_vector(to + (2 * pair + 1) * kFragmentBytes, low);
    store_vector(to + (4 + pair) * kFragmentBytes, uint4{q[i][0].x, q[i][0].y, q[i][1].x, q[i][1].y});
    const uint32_t highs[4] = {high.x, high.y, high.z, high.w}, lows[4] = {low.x, low.y, low.z, low.w};
#pragma unroll
    for (int32_t k = 0; k < 4; ++k) {
      const float2 value = sum_of_halves<bf16>(highs[k], lows[k]);
      square[k / 2] = fma_rn(value.x, value.x, square[k / 2]);
      square[k / 2] = fma_rn(value.y, value.y, square[k / 2]);
    }
  }
#pragma unroll
  for (int32_t h = 0; h < 2; ++h) {
    square[h] = column_sum(square[h]);
    if (c == 0) operands.stats[head * query_blocks + block].square[pair * kSide + 8 * h + g] = square[h];
  }
}

// A lane has a query. An EMA from the oldest query on is a weighted sum: alpha (1-alpha)^k for the query with k seeing ones
// behind it, (1-alpha)^k for the first.
__device__ __forceinline__ void make_stats(const ScoreParams& p, const ScoreView& item, int32_t head,
                                           int32_t block, QueryStats& stats) {
  const auto lane = static_cast<int32_t>(lane_idx());
  const int32_t num_queries = item.queries.num_queries, t = block * kTileCols + lane;
  int32_t seen_before = 0, seen_after = 0;
  bool is_seeing = false;
  for (int32_t first = 0; first < num_queries; first += kTileCols) {
    const bool sees = first + lane < num_queries && !is_blind(item, head, first + lane);
    const uint32_t seeing = ballot(sees);
    const uint32_t before = (1u << lane) - 1u;
    if (first < t - lane) seen_before += static_cast<int32_t>(count_bits(seeing));
    if (first > t - lane) seen_after += static_cast<int32_t>(count_bits(seeing));
    if (first == t - lane) {
      is_seeing = sees;
      seen_before += static_cast<int32_t>(count_bits(seeing & before));
      seen_after += static_cast<int32_t>(count_bits(seeing & ~before & ~(1u << lane)));
    }
  }
  float weight = is_seeing ? 1.0f : 0.0f;
  if (p.reduce == QueryReduce::kEma && is_seeing) {
    weight = (seen_before == 0 ? 1.0f : p.alpha) * powf(1.0f - p.alpha, static_cast<float>(seen_after));
  }
  const bool is_there = t < num_queries;
  const int64_t at = head * item.stats_stride + t;
  const float rest = is_there ? item.rest[at] : 1.0f;
  const bool has_top = is_there && rest < 1.0f;
  const float share = 1.0f / (1.0f + rest);
  float top_weight = p.tau == 1.0f ? share : share * powf(rest * share, p.tau - 1.0f);
  if (rest == 0.0f) top_weight = kInfinity;  // the others' mass underflowed: the row is mandatory
  stats.lse[lane] = is_there ? item.lse[at] * kLog2e : kInfinity;
  if (p.normalize && is_seeing) {
    const float inverse = 1.0f / item.norm[at];
    weight *= p.reduce == QueryReduce::kRms ? inverse * inverse : inverse;
  }
  stats.factor[lane] = weight;
  stats.top_weight[lane] = top_weight;
  stats.top[lane] = has_top ? item.top[at] : -1;
  stats.position[lane] = item.queries.positions[min(t, num_queries - 1)];
  if (lane < 4) stats.num_seeing[lane] = seen_before + seen_after + (is_seeing ? 1 : 0);
}

template <class T, int32_t kDim>
__global__ void __launch_bounds__(kThreads, 3)
    score_operands_kernel(const __grid_constant__ OperandParams params) {
  wait_for_previous();
  constexpr int32_t kBlocks = kDim / kSide;
  const ScoreParams& p = params.score;
  const ScoreView& item = p.items[blockIdx.z];
  const OperandsView& operands = params.operands[blockIdx.z];
  const auto head = static_cast<int32_t>(blockIdx.y);
  const int32_t task = static_cast<int32_t>(blockIdx.x) * kWarps + static_cast<int32_t>(warp_idx());
  if (task < kBlocks) return make_projection<T, kDim>(p, item, operands, head, task);
  const int32_t block = (task - kBlocks) / 2, pair = task % 2;
  if (block * kTileCols >= item.queries.num_queries) return;
  make_queries<kDim>(p, item, operands, head, params.query_blocks, block, pair);
  if (pair == 0) make_stats(p, item, head, block, operands.stats[head * params.query_blocks + block]);
}
static_assert(kMaxScoreDim / kSide % kWarps == 0);

}  // namespace

template <class T, int32_t kDim>
void make_score_operands(Context& context, const ScoreParams& params, const OperandsView* operands,
                         int32_t num_heads, int32_t num_items, int32_t query_blocks) {
  launch(score_operands_kernel<T, kDim>,
         {.x = blocks_of(kDim / kSide + 2 * query_blocks, kWarps),
          .y = static_cast<uint32_t>(num_heads),
          .z = static_cast<uint32_t>(num_items)},
         kThreads, 0, context.ready(),
         OperandParams{.score = params, .operands = operands, .query_blocks = query_blocks});
}

template void make_score_operands<bf16, 64>(Context&, const ScoreParams&, const OperandsView*, int32_t,
                                            int32_t, int32_t);
template void make_score_operands<bf16, 128>(Context&, const ScoreParams&, const OperandsView*, int32_t,
                                             int32_t, int32_t);
template void make_score_operands<f16, 64>(Context&, const ScoreParams&, const OperandsView*, int32_t,
                                           int32_t, int32_t);
template void make_score_operands<f16, 128>(Context&, const ScoreParams&, const OperandsView*, int32_t,
                                            int32_t, int32_t);

}  // namespace restkv::cuda
