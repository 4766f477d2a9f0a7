// The operands of score_indicator (score_operands.h): R_g in halves of f16 with its product with v_mean, z = R_g^T p of each query in
// such halves, queries, and what there is to know of each query. Numbers in f16 are held over a power of two, one for R_g of a head
// and one for each z (halves.h); z is made of halves of bf16, three products. Without a projection R_g is the identity.
// A block makes R_g of a head or 16 queries of one, a warp of it a block column, or 16 columns of z; all it reads is asked for at once.
// Grid: (1 + 16 queries, head, item). Bound: latency of L2. Shared memory: 1 KiB.
// Occupancy: score_operands_kernel 256 x 1.
#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/eviction/halves.h"
#include "kernels/cuda/eviction/score_operands.h"

namespace restkv::cuda {
namespace {

// Of the warps of a block.
template <int32_t kBlocks>
struct OperandsShared {
  float largest[kBlocks][kSide];
  float cross[kBlocks][kSide];
  float square[kSide];  // ||p||^2
};

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

// R_g of a head, the identity where there is none. An element is loaded wherever it is asked for, so that no load waits for another.
struct ProjectionRows {
  const float* first;
  int32_t stride;
  int32_t dim;

  __device__ ProjectionRows(const ScoreParams& p, const ScoreView& item, int32_t head)
      : first(item.projection ? item.projection + int64_t{head} * p.shape.dim * item.projection_stride
                              : nullptr),
        stride(static_cast<int32_t>(item.projection_stride)),
        dim(p.shape.dim) {}
  __device__ __forceinline__ float at(int32_t d, int32_t e) const {
    const float x = first[min(d, dim - 1) * stride + min(e, dim - 1)];
    return max(d, e) < dim ? x : 0.0f;
  }
};

// Block column `column` of R_g.
template <int32_t kDim>
__device__ __forceinline__ void make_projection(const ScoreParams& p, const ScoreView& item,
                                                const OperandsView& operands, int32_t head, int32_t column,
                                                OperandsShared<kDim / kSide>& shared) {
  constexpr int32_t kBlocks = kDim / kSide;
  const auto lane = static_cast<int32_t>(lane_idx());
  const int32_t g = lane / 4, c = lane % 4, dim = p.shape.dim;
  const ProjectionRows r(p, item, head);
  const float* mean = item.v_mean + int64_t{head / p.shape.group} * item.mean_stride;
  float x[kBlocks][4][2];  // pairs of b: (c0, g) (c1, g) (c0, g + 8) (c1, g + 8)
  float means[kBlocks][4];
  const auto fill = [&](const auto& at) {
#pragma unroll
    for (int32_t i = 0; i < kBlocks; ++i) {
      if (i < column) continue;
#pragma unroll
      for (int32_t j = 0; j < 4; ++j) {
        const int32_t d = i * kSide + 4 * c + j;
        means[i][j] = mean[min(d, dim - 1)];
#pragma unroll
        for (int32_t h = 0; h < 2; ++h) x[i][2 * h + j / 2][j % 2] = at(d, column * kSide + 8 * h + g);
      }
    }
  };
  if (r.first) {
    fill([&](int32_t d, int32_t e) { return r.at(d, e); });
  } else {
    fill([&](int32_t d, int32_t e) { return d == e && d < dim ? 1.0f : 0.0f; });
  }
  float largest = 0.0f;
#pragma unroll
  for (int32_t i = 0; i < kBlocks; ++i) {
    if (i < column) continue;
#pragma unroll
    for (int32_t k = 0; k < 8; ++k) largest = fmaxf(largest, fabs(x[i][k / 2][k % 2]));
  }
  largest = warp_max(largest);
  if (lane == 0) shared.largest[column][0] = largest;
  sync_threads();
#pragma unroll
  for (int32_t i = 0; i < kBlocks; ++i) largest = fmaxf(largest, shared.largest[i][0]);
  float scale, inverse;
  f16_scale_of(largest, scale, inverse);
  if (lane == 0 && column == 0) operands.scale[head] = scale;
  std::byte* out = operands.projection + head * projection_bytes(kBlocks) + lane * 16;
  const int32_t first = fragments_before(kBlocks, column);
  float sum[2][2] = {};  // with the low halves of kLowBlocks, with all; columns g, g + 8
#pragma unroll
  for (int32_t i = 0; i < kBlocks; ++i) {
    if (i < column) continue;
#pragma unroll
    for (int32_t k = 0; k < 8; ++k) x[i][k / 2][k % 2] *= inverse;
    uint4 high, low;
    split_pairs<f16>(x[i], high, low);
    if (operands.makes_projection) {
      store_vector(out + (first + i - column) * kFragmentBytes, high);
      store_vector(out + low_fragment(kBlocks, i, column) * kFragmentBytes, low);
    }
    const uint32_t highs[4] = {high.x, high.y, high.z, high.w}, lows[4] = {low.x, low.y, low.z, low.w};
#pragma unroll
    for (int32_t k = 0; k < 4; ++k) {
      const float2 both = sum_of_halves<f16>(highs[k], lows[k]);
      const float2 left = i - column < kLowBlocks ? both : unpack2<f16>(highs[k]);
      sum[0][k / 2] = fma_rn(left.x, means[i][k % 2 * 2], sum[0][k / 2]);
      sum[0][k / 2] = fma_rn(left.y, means[i][k % 2 * 2 + 1], sum[0][k / 2]);
      sum[1][k / 2] = fma_rn(both.x, means[i][k % 2 * 2], sum[1][k / 2]);
      sum[1][k / 2] = fma_rn(both.y, means[i][k % 2 * 2 + 1], sum[1][k / 2]);
    }
  }
#pragma unroll
  for (int32_t s = 0; s < 2; ++s) {
#pragma unroll
    for (int32_t h = 0; h < 2; ++h) {
      const float product = column_sum(sum[s][h]);
      if (c == 0) operands.offset[(2 * head + s) * kDim + column * kSide + 8 * h + g] = -product;
    }
  }
}

// z and q of columns [16 i, 16 i + 16) of queries [first, first + 16), pair `pair` of block `block`.
template <int32_t kDim>
__device__ __forceinline__ void make_queries(const ScoreParams& p, const ScoreView& item,
                                             const OperandsView& operands, int32_t head, int32_t i,
                                             int32_t block, int32_t pair, int64_t queries,
                                             OperandsShared<kDim / kSide>& shared) {
  constexpr int32_t kBlocks = kDim / kSide;
  const auto lane = static_cast<int32_t>(lane_idx());
  const int32_t g = lane / 4, c = lane % 4, dim = p.shape.dim;
  const int32_t first = block * kTileCols + pair * kSide;
  const int32_t num_queries = item.queries.num_queries;
  const ProjectionRows r(p, item, head);
  const float* mean = item.v_mean + int64_t{head / p.shape.group} * item.mean_stride;
  const float* outputs = item.p + int64_t{head} * dim * item.p_stride;
  const auto stride = static_cast<int32_t>(item.p_stride);
  const int32_t own[2] = {first + g, first + g + 8};  // queries
  float x[kBlocks][4][2];                             // p, as an a operand
  float y[kBlocks][2][2]
         [2];  // R_g^T, as two b operands of which column g is column 4 (g / 2) + g % 2 + 2 n of z
#pragma unroll
  for (int32_t k = 0; k < kBlocks; ++k) {
    if (k > i) continue;
#pragma unroll
    for (int32_t j = 0; j < 8; ++j) {
      const int32_t t = own[j / 2 % 2], e = k * kSide + 2 * c + j % 2 + j / 4 * 8;
      const float value = outputs[min(e, dim - 1) * stride + min(t, num_queries - 1)];
      x[k][j / 2][j % 2] = e < dim && t < num_queries ? value : 0.0f;
    }
  }
  const auto fill = [&](const auto& at) {
#pragma unroll
    for (int32_t k = 0; k < kBlocks; ++k) {
      if (k > i) continue;
#pragma unroll
      for (int32_t j = 0; j < 8; ++j) {
        y[k][j / 4][j / 2 % 2][j % 2] =
            at(i * kSide + g / 2 * 4 + g % 2 + j / 4 * 2, k * kSide + 2 * c + j % 2 + j / 2 % 2 * 8);
      }
    }
  };
  if (r.first) {
    fill([&](int32_t d, int32_t e) { return r.at(d, e); });
  } else {
    fill([&](int32_t d, int32_t e) { return d == e && d < dim ? 1.0f : 0.0f; });
  }
  uint2 q[2];
#pragma unroll
  for (int32_t h = 0; h < 2; ++h) {
    const int32_t t = own[h], d = i * kSide + 4 * c;
    q[h] = {0, 0};
    if (t >= num_queries || d >= dim) continue;
    DType dtype = DType::kF32;  // the rows'
    q[h] = load_vector<uint2>(query_at(item.queries, p.pool, head, p.shape.group, dim, t, dtype) +
                              int64_t{2} * d);
  }
  float z[2][4] = {};
  float square[2] = {0.0f, 0.0f};
#pragma unroll
  for (int32_t k = 0; k < kBlocks; ++k) {
    if (k > i) continue;
    MmaA<bf16> high, low;
    MmaB<bf16> r_high[2], r_low[2];
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) {
      split_pair<bf16>(x[k][j][0], x[k][j][1], high.r[j], low.r[j]);
      split_pair<bf16>(y[k][j / 2][j % 2][0], y[k][j / 2][j % 2][1], r_high[j / 2].r[j % 2],
                       r_low[j / 2].r[j % 2]);
      square[j % 2] = fma_rn(x[k][j][0], x[k][j][0], square[j % 2]);
      square[j % 2] = fma_rn(x[k][j][1], x[k][j][1], square[j % 2]);
    }
#pragma unroll
    for (int32_t n = 0; n < 2; ++n) {
      mma(z[n], low, r_high[n]);
      mma(z[n], high, r_low[n]);
    }
#pragma unroll
    for (int32_t n = 0; n < 2; ++n) mma(z[n], high, r_high[n]);
  }
#pragma unroll
  for (int32_t h = 0; h < 2; ++h) {
    const float largest = column_max(fmaxf(fmaxf(fabs(z[0][2 * h]), fabs(z[0][2 * h + 1])),
                                           fmaxf(fabs(z[1][2 * h]), fabs(z[1][2 * h + 1]))));
    square[h] = column_sum(square[h]);
    if (c == 0) shared.largest[i][8 * h + g] = largest;
    if (c == 0 && i + 1 == kBlocks) shared.square[8 * h + g] = square[h];
  }
  sync_threads();
  float scale[2];
  uint32_t highs[4], lows[4];
#pragma unroll
  for (int32_t h = 0; h < 2; ++h) {
    float largest = 0.0f, inverse, cross = 0.0f;
#pragma unroll
    for (int32_t k = 0; k < kBlocks; ++k) largest = fmaxf(largest, shared.largest[k][8 * h + g]);
    f16_scale_of(largest, scale[h], inverse);
#pragma unroll
    for (int32_t n = 0; n < 2; ++n) {
      split_pair<f16>(z[n][2 * h] * inverse, z[n][2 * h + 1] * inverse, highs[2 * h + n], lows[2 * h + n]);
      const float2 value = sum_of_halves<f16>(highs[2 * h + n], lows[2 * h + n]);
      const int32_t d = i * kSide + 4 * c + 2 * n;
      // beyond D z is 0
      cross = fma_rn(value.x, mean[min(d, dim - 1)], cross);
      cross = fma_rn(value.y, mean[min(d + 1, dim - 1)], cross);
    }
    cross = column_sum(cross);
    if (c == 0) shared.cross[i][8 * h + g] = cross;
  }
  std::byte* to = operands.queries + (queries * kBlocks + i) * kQueryFragments * kFragmentBytes + lane * 16;
  store_vector(to + 2 * pair * kFragmentBytes, uint4{highs[0], highs[1], highs[2], highs[3]});
  store_vector(to + (2 * pair + 1) * kFragmentBytes, uint4{lows[0], lows[1], lows[2], lows[3]});
  store_vector(to + (4 + pair) * kFragmentBytes, uint4{q[0].x, q[0].y, q[1].x, q[1].y});
  sync_threads();
  if (i != 0 || c != 0) return;
  QueryStats& stats = operands.stats[queries];
#pragma unroll
  for (int32_t h = 0; h < 2; ++h) {
    float cross = 0.0f;
#pragma unroll
    for (int32_t k = 0; k < kBlocks; ++k) cross += shared.cross[k][8 * h + g];
    const int32_t t = pair * kSide + 8 * h + g;
    const float all = shared.square[8 * h + g];
    stats.base[t] = fma_rn(2.0f * scale[h], cross, all);
    stats.near[t] = kNear * all;
    stats.scale[t] = -2.0f * scale[h];
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

template <int32_t kDim>
__global__ void __launch_bounds__(2 * kDim, 1)
    score_operands_kernel(const __grid_constant__ OperandParams params) {
  wait_for_previous();
  constexpr int32_t kBlocks = kDim / kSide;
  auto& shared = *shared_memory<OperandsShared<kBlocks>>();
  const ScoreParams& p = params.score;
  const ScoreView& item = p.items[blockIdx.z];
  const OperandsView& operands = params.operands[blockIdx.z];
  const auto head = static_cast<int32_t>(blockIdx.y), warp = static_cast<int32_t>(warp_idx());
  // a long column beside a short one where a scheduler has two warps
  const int32_t column = warp < kBlocks / 2 ? warp : 3 * kBlocks / 2 - 1 - warp;
  if (blockIdx.x == 0) return make_projection<kDim>(p, item, operands, head, column, shared);
  const int32_t block = static_cast<int32_t>(blockIdx.x - 1) / 2,
                pair = static_cast<int32_t>(blockIdx.x - 1) % 2;
  if (block * kTileCols >= item.queries.num_queries) return;
  const int64_t queries = int64_t{head} * params.query_blocks + block;
  if (pair == 0 && warp == 0) make_stats(p, item, head, block, operands.stats[queries]);
  make_queries<kDim>(p, item, operands, head, column, block, pair, queries, shared);
}

}  // namespace

template <int32_t kDim>
void make_score_operands(Context& context, const ScoreParams& params, const OperandsView* operands,
                         int32_t num_heads, int32_t num_items, int32_t query_blocks) {
  launch(score_operands_kernel<kDim>,
         {.x = static_cast<uint32_t>(1 + 2 * query_blocks),
          .y = static_cast<uint32_t>(num_heads),
          .z = static_cast<uint32_t>(num_items)},
         2 * kDim, sizeof(OperandsShared<kDim / kSide>), context.ready(),
         OperandParams{.score = params, .operands = operands, .query_blocks = query_blocks});
}

template void make_score_operands<64>(Context&, const ScoreParams&, const OperandsView*, int32_t, int32_t,
                                      int32_t);
template void make_score_operands<128>(Context&, const ScoreParams&, const OperandsView*, int32_t, int32_t,
                                       int32_t);

}  // namespace restkv::cuda
