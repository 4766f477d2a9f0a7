// One item of observe as its kernels see it; device memory throughout.
#pragma once

#include "kernels/cuda/eviction/item_views.h"

namespace restkv::cuda {

struct ObserveView {
  RowsView rows;
  QueriesView queries;
  const float* projection;    // [H*D, projection_stride], null: value space
  const int32_t* drift_rows;  // [K], null: no drift
  float* lse;                 // [H, stats_stride]
  int32_t* top;               // [H, stats_stride]
  float* rest;                // [H, stats_stride]
  float* norm;                // [H, stats_stride]
  float* mean_index;          // [H, stats_stride]
  float* p;                   // [H*D, p_stride]
  float* p_rest;              // [H*D, p_stride]
  float* v_mean;              // [K, mean_stride]
  float* ratio;               // [H, ratio_stride]
  float* partial;             // [chunks * H, D]
  int64_t projection_stride;
  int64_t stats_stride;
  int64_t p_stride;
  int64_t mean_stride;
  int64_t ratio_stride;
  int32_t stats_cols;  // queries that lse and the others have room for: Q rounded up to 16
  int32_t window_rows;
};

inline ObserveView observe_view(Context& context, const ObserveItem& item, const AttentionShape& shape) {
  const Observation& o = item.out;
  ObserveView view{};
  view.rows = rows_view(context, item.rows, shape.num_kv_heads);
  view.queries = queries_view(context, item.queries, shape);
  view.projection = static_cast<const float*>(item.projection.data);
  view.projection_stride = item.projection.stride;
  if (item.drift_rows) view.drift_rows = context.upload(item.drift_rows, shape.num_kv_heads);
  view.lse = static_cast<float*>(o.lse.data);
  view.top = static_cast<int32_t*>(o.top.data);
  view.rest = static_cast<float*>(o.rest.data);
  view.norm = static_cast<float*>(o.norm.data);
  view.mean_index = static_cast<float*>(o.mean_index.data);
  view.p = static_cast<float*>(o.p.data);
  view.p_rest = static_cast<float*>(o.p_rest.data);
  view.v_mean = static_cast<float*>(o.v_mean.data);
  view.ratio = static_cast<float*>(o.ratio.data);
  view.partial = static_cast<float*>(o.partial.data);
  view.stats_stride = o.lse.stride;
  view.p_stride = o.p.stride;
  CHECK(view.p_stride % 4 == 0) << "rows of p of " << view.p_stride;
  view.mean_stride = o.v_mean.stride;
  view.ratio_stride = o.ratio.stride;
  view.stats_cols = (view.queries.num_queries + 15) / 16 * 16;
  view.window_rows = item.window_rows;
  return view;
}

}  // namespace restkv::cuda
