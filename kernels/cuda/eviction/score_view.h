// What the kernels of score share: an item as they see it, the weights of queries, and how queries and heads of a group join.
#pragma once

#include "kernels/cuda/eviction/item_views.h"
#include "kernels/cuda/eviction/row_tile.h"

namespace restkv::cuda {

struct ScoreView {
  RowsView rows;
  QueriesView queries;
  const float* projection;   // [H*D, projection_stride], null: value space
  const float* lse;          // [H, stats_stride]
  const int32_t* top;        // [H, stats_stride]
  const float* rest;         // [H, stats_stride]
  const float* norm;         // [H, stats_stride]
  const float* p;            // [H*D, p_stride]
  const float* p_rest;       // [H*D, p_stride]
  const float* v_mean;       // [K, mean_stride]
  const float* ratio;        // [H, ratio_stride]
  const int32_t* sum_pages;  // [K, sum_stride], null: no sums
  const int32_t* sum_len;    // [K]
  float* out;                // [K, out_stride]
  int64_t projection_stride;
  int64_t stats_stride;
  int64_t p_stride;
  int64_t mean_stride;
  int64_t ratio_stride;
  int64_t out_stride;
  int32_t sum_stride;
  int32_t window_rows;
  int32_t head_rows;
  int32_t layer;
  int32_t accumulate;
  ProtectView protect;
};

struct ScoreParams {
  const ScoreView* items;  // [grid.z]
  PoolView pool;
  LogitShape shape;
  ScoreKind kind;
  QueryReduce reduce;
  GroupReduce group_reduce;
  float alpha;
  float tau;
  int32_t normalize;
  int32_t ladder_span;
  int32_t num_layers;
};

// The larger one; NaN wins, so that it is seen later.
__device__ __forceinline__ float max_or_nan(float a, float b) { return b > a || b != b ? b : a; }

__device__ __forceinline__ float join_group(GroupReduce reduce, float score, float e) {
  if (reduce == GroupReduce::kRss) return score + e * e;
  if (reduce == GroupReduce::kMax) return max_or_nan(score, e);
  return score + e;
}

__device__ __forceinline__ float finish_group(GroupReduce reduce, float score, int32_t group) {
  if (reduce == GroupReduce::kRss) return sqrtf(score);
  return reduce == GroupReduce::kMean ? score / static_cast<float>(group) : score;
}

__device__ __forceinline__ bool is_blind(const ScoreView& item, int32_t head, int32_t query) {
  const int64_t at = head * item.stats_stride + query;
  return item.lse[at] == kInfinity && item.top[at] < 0;
}

// A row's value over the queries so far and over those of the next block: `keep` is (1-alpha)^n of that block's n seeing ones.
__device__ __forceinline__ float join_queries(QueryReduce reduce, float value, float block, float keep,
                                              int32_t seen_before, int32_t seen_here) {
  if (reduce == QueryReduce::kMax) return max_or_nan(value, block);
  if (reduce != QueryReduce::kEma) return value + block;
  if (seen_here == 0) return value;
  return seen_before > 0 ? value * keep + block : block;
}

// Of all queries, of which so many see anything.
__device__ __forceinline__ float finish_queries(QueryReduce reduce, float value, int32_t num_seeing) {
  const float queries = static_cast<float>(max(1, num_seeing));
  if (reduce == QueryReduce::kRms) return sqrtf(value / queries);
  return reduce == QueryReduce::kMean ? value / queries : value;
}

// weights [32] of queries [first, first + 32) in the reduction and how many of them see anything. An EMA from the oldest
// query on is a weighted sum: alpha (1-alpha)^k for the query with k seeing ones behind it, (1-alpha)^k for the first.
__device__ __forceinline__ void query_weights(const ScoreParams& p, const ScoreView& item, int32_t head,
                                              int32_t first, int32_t seen_before, float* weights) {
  if (warp_idx() == 0) {
    const int32_t t = first + static_cast<int32_t>(lane_idx());
    const bool is_seeing = t < item.queries.num_queries && !is_blind(item, head, t);
    const uint32_t seeing = ballot(is_seeing);
    float weight = is_seeing ? 1.0f : 0.0f;
    if (p.reduce == QueryReduce::kEma && is_seeing) {
      const uint32_t lane = lane_idx();
      const bool is_oldest = seen_before == 0 && (seeing & ((1u << lane) - 1u)) == 0;
      weight = is_oldest ? 1.0f : p.alpha;
      for (uint32_t later = seeing >> lane >> 1; later != 0; later &= later - 1) weight *= 1.0f - p.alpha;
    }
    weights[lane_idx()] = weight;
  }
}

// kIndicatorQuery where rows and queries are of one 16-bit type, on tensor cores (score_indicator.cu). False: not this shape.
bool score_indicator(Context& context, const ScoreArgs& args, const ScoreParams& params, int32_t most);

}  // namespace restkv::cuda
