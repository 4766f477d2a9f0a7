// score for kIndicatorQuery where rows and queries are of one 16-bit type (formulas: score.cu), on tensor cores:
//   logits    K Q^T, products of the type itself
//   ||u_j||^2 u_j = R_g v_j - R_g v_mean, v_j in f16 over a power of two, R_g in f16, those blocks of it that hold the diagonal, where the
//             largest numbers of a Cholesky factor are, in two halves; R_g v_mean of the same R_g is score_operands.cu's, so that a
//             large mean costs the digits of one f32 sum and no more
//   distance  ||p_t - u_j||^2 = ||p_t||^2 + ||u_j||^2 - 2 p_t u_j with p_t u_j = z_t (v_j - v_mean), z_t = R_g^T p_t, two products of z
//             in halves of f16: u_j itself is not multiplied with the queries. Where it is less than kNear of the two squares, as for
//             sinks and for rows like those a query looks at, digits are lost: there, and for the row that holds more than half of
//             a query's attention (with p_rest in place of p), u_j is made again, from L2 with both halves of R_g, and subtracted
//             value by value in f32.
// A block of four warps owns 128 rows of one KV head, each warp 32 of them: V in registers, K in shared memory where each lane finds
// what it put there. What belongs to a head of the group passes through a ring of two stages, one barrier each: R_g in two of them at
// D = 128, then 32 queries (z and q) in two; at D = 64 one and one. A lane holds logits and products of 4 rows x 8 queries in the
// places of the mma's accumulators. Sums over queries are in a fixed order, so neighbours in the batch change no bit.
// Grid: (128 rows, KV head, item). Bound: products, N*H*(D*(D + 48)/2 + 3*Q*D) multiply-adds, and what is left of latency with
// two warps a scheduler; behind it what a multiprocessor reads of shared memory, 54 KiB a warp and head. Shared memory at D = 128:
// 77 KiB: 2 blocks of sm_90 and sm_80, 1 of sm_86.
// Occupancy: score_indicator_kernel 128 x 2.
#include "kernels/cuda/eviction/half_type.h"
#include "kernels/cuda/eviction/indicator_tile.h"

namespace restkv::cuda {
namespace {

struct IndicatorParams {
  ScoreParams score;
  const OperandsView* operands;  // [grid.z]
  int32_t query_blocks;          // at most
};

// Columns [16 i, 16 i + 16) of u of 16 rows over the powers of two of R_g and of the rows, with both halves of R_g, from L2.
template <int32_t kDim>
__device__ __forceinline__ void project_exactly(const OperandsView& operands, int32_t head, int32_t i,
                                                int32_t m, const MmaA<f16> (&v)[kRowTiles][kDim / kSide],
                                                const float (&inverse)[2], float (&u)[2][4]) {
  constexpr int32_t kBlocks = kDim / kSide;
  const auto lane = static_cast<int32_t>(lane_idx());
  const float* offset = operands.offset + (2 * head + 1) * kDim + i * kSide + lane % 4 * 2;
  const auto* fragments =
      reinterpret_cast<const uint4*>(operands.projection + head * projection_bytes(kBlocks)) + lane;
  const int32_t first = fragments_before(kBlocks, i) - i;
#pragma unroll
  for (int32_t n = 0; n < 2; ++n) {
    const float2 o = load_vector<float2>(offset + 8 * n);
#pragma unroll
    for (int32_t h = 0; h < 2; ++h) {
      u[n][2 * h] = o.x * inverse[h];
      u[n][2 * h + 1] = o.y * inverse[h];
    }
  }
#pragma unroll
  for (int32_t k = 0; k < kBlocks; ++k) {
    if (k < i) continue;
    MmaA<f16> a;
#pragma unroll
    for (int32_t r = 0; r < 4; ++r) a.r[r] = m == 0 ? v[0][k].r[r] : v[1][k].r[r];
    MmaB<f16> b[2];
    b_of(load_vector<uint4>(fragments + low_fragment(kBlocks, k, i) * 32), b);
    mma(u[0], a, b[0]);
    mma(u[1], a, b[1]);
    b_of(load_vector<uint4>(fragments + (first + k) * 32), b);
    mma(u[0], a, b[0]);
    mma(u[1], a, b[1]);
  }
}

// ||p_t - u_j||^2 value by value, for the pairs of near[]: u of 16 rows again, 16 columns at a time by way of the warp's part of
// shared memory; there a lane has a query, and subtracts from it each row that has such a pair.
template <int32_t kDim>
__device__ __forceinline__ void add_exact(const ScoreParams& p, const ScoreView& item,
                                          const OperandsView& operands, int32_t head, int32_t first,
                                          const QueryStats& stats, const LaneRows& own,
                                          const MmaA<f16> (&v)[kRowTiles][kDim / kSide],
                                          const float (&inverses)[kRowTiles][2],
                                          const uint32_t (&near)[kRowTiles], ExactPart& exact,
                                          LaneSums& sums) {
  constexpr int32_t kAtOnce = 4;  // of p: few registers are left
  const auto lane = static_cast<int32_t>(lane_idx());
  const int32_t g = lane / 4, c = lane % 4 * 2, dim = p.shape.dim;
  const int64_t begin = int64_t{head} * dim * item.p_stride + first + lane;
  const bool is_query = first + lane < item.queries.num_queries;
  const float scale = operands.scale[head];
#pragma unroll 1
  for (int32_t m = 0; m < kRowTiles; ++m) {
    const uint32_t mine = m == 0 ? near[0] : near[1];
    uint32_t tile_rows = (mine & 0x3333u) != 0 ? 1u << g : 0u;  // bits 4 n + i with i / 2 == 0
    if ((mine & 0xCCCCu) != 0) tile_rows |= 1u << (g + 8);
#pragma unroll
    for (uint32_t bits = 1; bits < kWarpSize; bits *= 2) tile_rows |= shuffle_xor(tile_rows, bits);
    if (tile_rows == 0) continue;
    const int32_t top = stats.top[lane] - (own.first - g + 16 * m);  // of the tile
    const bool has_top = any(top >= 0 && top < 16);
#pragma unroll 1
    for (int32_t i = 0; i * kSide < dim; ++i) {
      float u[2][4];
      const float inverse[2] = {m == 0 ? inverses[0][0] : inverses[1][0],
                                m == 0 ? inverses[0][1] : inverses[1][1]};
      project_exactly<kDim>(operands, head, i, m, v, inverse, u);
#pragma unroll
      for (int32_t n = 0; n < 2; ++n) {
#pragma unroll
        for (int32_t h = 0; h < 2; ++h) {
          const float unit = scale * inverse_of_power(inverse[h]);
          store_vector(exact.u[g + 8 * h] + 8 * n + c, float2{u[n][2 * h] * unit, u[n][2 * h + 1] * unit});
        }
      }
      sync_warp();
#pragma unroll 1
      for (int32_t e0 = 0; e0 < kSide; e0 += kAtOnce) {
        if (i * kSide + e0 >= dim) break;
        float outputs[kAtOnce], others[kAtOnce];
        const int64_t at = begin + (i * kSide + e0) * item.p_stride;
#pragma unroll
        for (int32_t e = 0; e < kAtOnce; ++e) {
          outputs[e] = is_query ? item.p[at + e * item.p_stride] : 0.0f;
          others[e] = is_query && has_top ? item.p_rest[at + e * item.p_stride] : 0.0f;
        }
        for (uint32_t rest = tile_rows; rest != 0; rest &= rest - 1) {
          const auto row = static_cast<int32_t>(31u - leading_zeros(rest & (0u - rest)));
          float sum = i + e0 == 0 ? 0.0f : exact.sums[row][lane];
#pragma unroll
          for (int32_t e = 0; e < kAtOnce; ++e) {
            const float x = (top == row ? others[e] : outputs[e]) - exact.u[row][e0 + e];
            sum = fma_rn(x, x, sum);
          }
          exact.sums[row][lane] = sum;
        }
      }
      sync_warp();
    }
#pragma unroll
    for (int32_t k = 0; k < 4 * kQueryTiles; ++k) {
      if ((mine >> k & 1u) == 0) continue;
      const int32_t t = query_of(k / 4, k);
      const float weight = m == 0 ? sums.s[0][k / 4][k % 4] : sums.s[1][k / 4][k % 4];
      // mandatory, even at distance 0
      const float square = weight == kInfinity ? 1.0f : exact.sums[g + k / 2 % 2 * 8][t];
      if (m == 0) {
        sums.x[0][k / 4][k % 4] = square;
      } else {
        sums.x[1][k / 4][k % 4] = square;
      }
    }
    sync_warp();
  }
}

// Over 32 queries, of e = weight ||p - u||^tau, for row c of the four that lanes 4 g + c share: [c / 2][c % 2].
__device__ __forceinline__ float reduce_queries(const ScoreParams& p, const QueryStats& stats,
                                                const LaneSums& all) {
  float sums[kRowTiles][2] = {};
  const bool is_rms = p.reduce == QueryReduce::kRms, is_max = p.reduce == QueryReduce::kMax;
  // factor 0: padding, or it sees nothing
  if (is_rms && p.tau == 1.0f) {
    for_each_pair([&](int32_t m, int32_t n, int32_t i) {
      const float2 factors = load_vector<float2>(stats.factor + query_of(n, 0));
      const float factor = i % 2 == 0 ? factors.x : factors.y, share = all.s[m][n][i];
      float& sum = sums[m][i / 2];
      sum = factor == 0.0f ? sum : fma_rn(factor * share, share * all.x[m][n][i], sum);
    });
  } else {
    const float power = 0.5f * p.tau;
    for_each_pair([&](int32_t m, int32_t n, int32_t i) {
      const float2 factors = load_vector<float2>(stats.factor + query_of(n, 0));
      const float factor = i % 2 == 0 ? factors.x : factors.y, x = all.x[m][n][i];
      const float square = x < 0.0f ? 0.0f : x;  // where nobody looks
      const float e = all.s[m][n][i] * exp2_approx(power * log2_approx(square));
      const float part = factor == 0.0f ? 0.0f : factor * (is_rms ? e * e : e);
      float& sum = sums[m][i / 2];
      sum = is_max ? max_or_nan(sum, part) : sum + part;
    });
  }
  const auto join = [&](float own, float other) { return is_max ? max_or_nan(own, other) : own + other; };
  const bool is_lower = lane_idx() % 4 >= 2, is_odd = lane_idx() % 2 == 1;
  float halves[2];
#pragma unroll
  for (int32_t h = 0; h < 2; ++h) {
    const float other = shuffle_xor(is_lower ? sums[0][h] : sums[1][h], 2);
    halves[h] = join(is_lower ? sums[1][h] : sums[0][h], other);
  }
  const float other = shuffle_xor(is_odd ? halves[0] : halves[1], 1);
  return join(is_odd ? halves[1] : halves[0], other);
}

template <class T, int32_t kDim>
__global__ void __launch_bounds__(kScoreThreads, 2)
    score_indicator_kernel(const __grid_constant__ IndicatorParams params) {
  wait_for_previous();
  constexpr int32_t kBlocks = kDim / kSide;
  auto& shared = *shared_memory<IndicatorShared<kDim>>();
  const ScoreParams& p = params.score;
  const ScoreView& item = p.items[blockIdx.z];
  const OperandsView& operands = params.operands[blockIdx.z];
  const auto kv_head = static_cast<int32_t>(blockIdx.y);
  const DeviceRows rows(item.rows, p.pool, kv_head, p.shape.dim);
  const int32_t begin = static_cast<int32_t>(blockIdx.x) * kScoreRows;
  if (begin >= rows.num_rows) return;
  const int32_t count = min(kScoreRows, rows.num_rows - begin);
  float* out = item.out + kv_head * item.out_stride;
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const auto lane = static_cast<int32_t>(lane_idx()), warp = static_cast<int32_t>(warp_idx());

  // A thread looks up a row. Rows whose place is settled get 0; where all are, nothing is computed.
  const int32_t looked_up = begin + thread;
  const bool is_there = thread < count;
  const int32_t page = is_there ? rows.page_of(looked_up) : 0;
  const int32_t position = is_there ? rows.position(looked_up, page) : 0;
  const uint32_t scored = ballot(is_there && place_of(item.protect, rows, looked_up, position) == 1);
  shared.row_keys[thread] = is_there ? rows.at(looked_up, page, false) : nullptr;
  shared.row_values[thread] = is_there ? rows.at(looked_up, page, true) : nullptr;
  shared.positions[thread] = position;
  if (lane == 0) shared.scored[warp] = scored;
  sync_threads();
  uint32_t any_scored = 0;
#pragma unroll
  for (int32_t w = 0; w < kScoreWarps; ++w) any_scored |= shared.scored[w];
  if (any_scored == 0) {
    if (thread < count) out[begin + thread] = 0.0f;
    return;
  }

  const int32_t item_blocks = (item.queries.num_queries + kTileCols - 1) / kTileCols;
  const int32_t first_head = kv_head * p.shape.group;
  StageCopy<kDim> copier(operands, shared, params.query_blocks);
  copier.template add_projection<0>(first_head);
  cp_async_commit();
  const LaneRows own{begin + warp * kWarpRows + lane / 4, rows.num_rows,
                     shared.positions + warp * kWarpRows + lane / 4};
  MmaA<f16> v[kRowTiles][kBlocks];
#pragma unroll
  for (int32_t m = 0; m < kRowTiles; ++m) {
    const std::byte *keys[2], *values[2];
#pragma unroll
    for (int32_t h = 0; h < 2; ++h) {
      const int32_t row = warp * kWarpRows + 16 * m + 8 * h + lane / 4;
      keys[h] = shared.row_keys[row];
      values[h] = shared.row_values[row];
    }
#pragma unroll
    for (int32_t i = 0; i < kBlocks; ++i) {
      store_vector(&shared.keys[warp][m][i][lane], row_fragment(keys, rows.dim, i));
      v[m][i] = a_of<f16>(row_fragment(values, rows.dim, i));
    }
  }

  RowNumbers numbers;
  scale_values<T>(item.v_mean + int64_t{kv_head} * item.mean_stride, p.shape.dim, v, numbers.inverse);
#pragma unroll
  for (int32_t m = 0; m < kRowTiles; ++m) {
    numbers.unit[m][0] = inverse_of_power(numbers.inverse[m][0]);
    numbers.unit[m][1] = inverse_of_power(numbers.inverse[m][1]);
  }

  float score = 0.0f;  // of row c of the four that lanes 4 g + c share (reduce_queries)
  int32_t slot = 0, stats_slot = 0;
  // The next stage: there for all, and its predecessor's place free for what `copy_next` copies.
  const auto next_stage = [&](const auto& copy_next) -> const auto& {
    cp_async_wait<0>();
    sync_threads();
    copy_next();
    cp_async_commit();
    const auto& stage = shared.ring[slot];
    slot ^= 1;
    return stage;
  };
  using Plan = Stages<kBlocks>;
  const int32_t end = first_head + p.shape.group;
  for (int32_t head = first_head; head < end; ++head) {
    const float scale = operands.scale[head];
    float square[kRowTiles][2] = {};
    const auto multiply_projection = [&]<int32_t kStage>() {
      if constexpr (kStage < Plan::kProjection) {
        const auto& stage = next_stage([&] {
          if constexpr (kStage + 1 < Plan::kProjection) {
            copier.template add_projection<kStage + 1>(head);
          } else {
            copier.template add_queries<0>(head, 0);
          }
        });
        add_all_squares<kBlocks, Plan::first_column(kStage), Plan::first_column(kStage + 1)>(
            stage.fragments, stage.offset, v, numbers.inverse, square);
      }
    };
    multiply_projection.template operator()<0>();
    multiply_projection.template operator()<1>();
    multiply_projection.template operator()<2>();
#pragma unroll
    for (int32_t m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int32_t h = 0; h < 2; ++h) {
        const float unit = numbers.unit[m][h] * scale;
        square[m][h] += shuffle_xor(square[m][h], 1);
        square[m][h] += shuffle_xor(square[m][h], 2);
        numbers.square[m][h] = square[m][h] * unit * unit;
      }
    }
    float value = 0.0f;
    int32_t num_seeing = 0;
    for (int32_t block = 0; block < item_blocks; ++block) {
      LaneSums sums = {};
      const auto multiply_queries = [&]<int32_t kPart>() {
        if constexpr (kPart < Plan::kQueries) {
          const auto& stage = next_stage([&] {
            if constexpr (kPart + 1 < Plan::kQueries) {
              copier.template add_queries<kPart + 1>(head, block);
            } else if (block + 1 < item_blocks) {
              copier.template add_queries<0>(head, block + 1);
            } else if (head + 1 < end) {
              copier.template add_projection<0>(head + 1);
            }
          });
          add_queries<T, kBlocks, kPart * Plan::kChunks>(stage.fragments, shared.keys[warp], v, sums);
        }
      };
      multiply_queries.template operator()<0>();
      multiply_queries.template operator()<1>();
      const QueryStats& stats = shared.stats[stats_slot];
      stats_slot ^= 1;
      const int32_t top = stats.top[lane] - (begin + warp * kWarpRows);
      const bool is_near = weigh(p, stats, own, numbers, sums);
      if (any(is_near || (top >= 0 && top < kWarpRows))) {
        uint32_t near[kRowTiles];
        find_near(stats, own, numbers, sums, near);
        if (any((near[0] | near[1]) != 0)) {
          add_exact<kDim>(p, item, operands, head, block * kTileCols, stats, own, v, numbers.inverse, near,
                          shared.exact[warp], sums);
        }
      }
      num_seeing = stats.num_seeing[0];
      const float sum = reduce_queries(p, stats, sums);
      value = p.reduce == QueryReduce::kMax ? max_or_nan(value, sum) : value + sum;
    }
    score = join_group(p.group_reduce, score, finish_queries(p.reduce, value, num_seeing));
  }
  cp_async_wait<0>();
  const int32_t place = lane % 4 * 8 + lane / 4, row = begin + warp * kWarpRows + place;
  if (row < rows.num_rows) {
    const bool is_scored = (shared.scored[warp] >> place & 1u) != 0;
    out[row] = is_scored ? finish_group(p.group_reduce, score, p.shape.group) : 0.0f;
  }
}

// Items [first, first + n) of which the workspace holds the operands.
template <class T, int32_t kDim>
bool run(Context& context, const ScoreArgs& args, const ScoreParams& params, int32_t most) {
  constexpr int32_t kBlocks = kDim / kSide;
  const auto num_items = static_cast<int64_t>(args.items.size());
  const int64_t heads = args.shape.num_heads;
  int64_t most_queries = 0;
  for (const ScoreItem& item : args.items)
    most_queries = std::max(most_queries, static_cast<int64_t>(item.queries.positions.size()));
  const int64_t query_blocks = (most_queries + kTileCols - 1) / kTileCols;
  const int64_t layer_bytes = heads * projection_bytes(kBlocks);
  const int64_t query_bytes = heads * query_blocks * kBlocks * kQueryFragments * kFragmentBytes;
  const int64_t offset_bytes = heads * 2 * kDim * 4, scale_bytes = (heads + 3) / 4 * 16,
                stats_bytes = heads * query_blocks * int64_t{sizeof(QueryStats)};
  const int64_t item_bytes = layer_bytes + query_bytes + offset_bytes + scale_bytes + stats_bytes;
  const int64_t batch = std::min<int64_t>({num_items, (context.workspace_left() - 256) / item_bytes, 65535});
  if (batch <= 0) return false;
  auto* memory = context.workspace<std::byte>(batch * item_bytes);
  const Staged<OperandsView> operands = context.stage<OperandsView>(static_cast<size_t>(num_items));
  for (int64_t i = 0; i < num_items; ++i) {
    OperandsView& view = operands.host[static_cast<size_t>(i)];
    view.projection = memory + i % batch * item_bytes;
    view.queries = view.projection + layer_bytes;
    view.offset = reinterpret_cast<float*>(view.queries + query_bytes);
    view.scale = view.offset + heads * 2 * kDim;
    view.stats = reinterpret_cast<QueryStats*>(view.queries + query_bytes + offset_bytes + scale_bytes);
    view.makes_projection = 1;
    for (int64_t j = i / batch * batch; j < i; ++j) {
      const ConstTensor &a = args.items[static_cast<size_t>(i)].projection,
                        &b = args.items[static_cast<size_t>(j)].projection;
      if (a.data != b.data || a.stride != b.stride) continue;
      view.projection = operands.host[static_cast<size_t>(j)].projection;
      view.makes_projection = 0;
      break;
    }
  }
  for (int64_t first = 0; first < num_items; first += batch) {
    const auto items = static_cast<uint32_t>(std::min(batch, num_items - first));
    IndicatorParams now{.score = params,
                        .operands = operands.device + first,
                        .query_blocks = static_cast<int32_t>(query_blocks)};
    now.score.items += first;
    make_score_operands<kDim>(context, now.score, now.operands, static_cast<int32_t>(heads),
                              static_cast<int32_t>(items), now.query_blocks);
    launch(
        score_indicator_kernel<T, kDim>,
        {.x = blocks_of(most, kScoreRows), .y = static_cast<uint32_t>(args.shape.num_kv_heads), .z = items},
        kScoreThreads, sizeof(IndicatorShared<kDim>), context.ready(), now);
  }
  return true;
}

}  // namespace

bool score_indicator(Context& context, const ScoreArgs& args, const ScoreParams& params, int32_t most) {
  const DType type = common_type(args.items, args.cache);
  if (type == DType::kF32 || args.shape.head_dim > kMaxScoreDim ||
      !is_aligned(args.items, args.shape.head_dim))
    return false;
  bool is_done = false;
  dispatch_half(type, [&]<class T>() {
    is_done = args.shape.head_dim <= 64 ? run<T, 64>(context, args, params, most)
                                        : run<T, kMaxScoreDim>(context, args, params, most);
  });
  return is_done;
}

}  // namespace restkv::cuda
