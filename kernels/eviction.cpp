// The checks of the eviction ops, once for all backends, and the adaptive kernel's formula. What fails here is our bug.
#include "kernels/eviction.h"

#include <algorithm>
#include <cmath>

#include "kernels/backend.h"

namespace restkv {
namespace {

template <class T>
void check_place(const Backend& backend, const char* name, const T& tensor) {
  CHECK(!tensor || backend.is_own_address(tensor.data)) << name << " is not in the backend's memory";
}

void check_shape(const Backend& backend, const AttentionShape& shape, const PagedCacheView& cache) {
  CHECK(cache.pool == nullptr || backend.is_own_address(cache.pool))
      << "the pages are not in the backend's memory";
  CHECK(shape.num_kv_heads > 0 && shape.num_heads > 0 && shape.num_heads % shape.num_kv_heads == 0)
      << shape.num_heads << " heads over " << shape.num_kv_heads;
  CHECK(cache.pool == nullptr || cache.head_dim == shape.head_dim)
      << cache.head_dim << " of " << shape.head_dim;
}

int64_t max_rows(const RowSource& rows, int32_t num_kv_heads) {
  int32_t most = 0;
  for (int32_t h = 0; h < num_kv_heads; ++h) most = std::max(most, rows.num_rows(h));
  return most;
}

void check_rows(const Backend& backend, const RowSource& rows, const AttentionShape& shape,
                const PagedCacheView& cache) {
  check_place(backend, "k", rows.k);
  check_place(backend, "v", rows.v);
  CHECK(rows.k.rows == rows.v.rows) << rows.k.rows << " keys, " << rows.v.rows << " values";
  if (rows.k) {
    const int64_t cols = int64_t{shape.num_kv_heads} * shape.head_dim;
    CHECK(rows.k.cols == cols && rows.v.cols == cols)
        << rows.k.cols << ", " << rows.v.cols << " columns, not " << cols;
  }
  if (!rows.pages.kv_len) return;
  CHECK(rows.pages.pages != nullptr && cache.pool != nullptr) << "no pages";
  for (int32_t h = 0; h < shape.num_kv_heads; ++h) {
    CHECK(rows.pages.kv_len[h] >= 0 && rows.pages.kv_len[h] <= int64_t{rows.pages.stride} * cache.slots)
        << "head " << h << ": " << rows.pages.kv_len[h] << " entries in " << rows.pages.stride << " pages";
  }
}

void check_ring(const QueryRing& ring, const AttentionShape& shape, const PagedCacheView& cache) {
  CHECK(ring.pages != nullptr && cache.pool != nullptr && ring.window > 0) << "no ring";
  const int32_t pages = QueryRing::num_pages(ring.window, shape.num_heads / shape.num_kv_heads, cache.slots);
  CHECK(ring.stride >= pages) << ring.stride << " pages of " << pages;
}

void check_queries(const Backend& backend, const QuerySource& queries, const AttentionShape& shape,
                   const PagedCacheView& cache) {
  CHECK(std::is_sorted(queries.positions.begin(), queries.positions.end())) << "queries out of order";
  const auto count = static_cast<int64_t>(queries.positions.size());
  check_place(backend, "queries", queries.rows);
  if (queries.rows) {
    CHECK(queries.rows.rows >= count && queries.rows.cols == int64_t{shape.num_heads} * shape.head_dim)
        << "queries are [" << queries.rows.rows << ", " << queries.rows.cols << "]";
    return;
  }
  check_ring(queries.ring, shape, cache);
  CHECK(count <= queries.ring.window) << count << " queries in a ring of " << queries.ring.window;
}

void check_projection(const Backend& backend, const ConstTensor& projection, const AttentionShape& shape) {
  if (!projection) return;
  check_place(backend, "projection", projection);
  CHECK(projection.dtype == DType::kF32 && projection.rows == int64_t{shape.num_heads} * shape.head_dim &&
        projection.cols == shape.head_dim)
      << "projection is [" << projection.rows << ", " << projection.cols << "]";
}

void check_observation(const Backend& backend, const Observation& o, const ScoreSpec& spec,
                       const AttentionShape& shape, int64_t rows, size_t num_queries) {
  if (!needs_observation(spec.kind)) return;
  for (const Tensor* tensor :
       {&o.lse, &o.top, &o.rest, &o.p, &o.p_rest, &o.norm, &o.v_mean, &o.ratio, &o.partial, &o.mean_index})
    check_place(backend, "observation", *tensor);
  const int64_t padded = (static_cast<int64_t>(num_queries) + 15) / 16 * 16;
  CHECK(o.lse && o.lse.rows == shape.num_heads && o.lse.cols >= padded)
      << "room for " << o.lse.cols << " queries";
  if (spec.kind != ScoreKind::kAttention)
    CHECK(o.p && o.p.cols >= padded) << "room for " << o.p.cols << " queries";
  if (spec.kind == ScoreKind::kIndicatorAfter)
    CHECK(o.ratio.cols >= rows) << o.ratio.cols << " of " << rows << " rows";
  if (!o.logits) return;
  CHECK(backend.keeps_logits() && spec.kind == ScoreKind::kIndicatorQuery) << "logits are not kept";
  check_place(backend, "logits", o.logits);
  CHECK(o.logits.rows >= rows * shape.num_heads && o.logits.cols >= padded)
      << "logits are [" << o.logits.rows << ", " << o.logits.cols << "]";
}

}  // namespace

// arXiv 2605.08840's code: width max(kernel, 2 floor(|t| / scale) + 1), shift floor(t / scale), plus 1 unless t > 0.
AdaptiveKernel adaptive_kernel(double drift, int32_t kernel, int32_t scale) {
  const double steps = std::clamp<double>(drift / scale, -kMaxDriftSteps, kMaxDriftSteps);
  const auto reach = static_cast<int32_t>(std::floor(std::abs(steps)));
  const auto shift = static_cast<int32_t>(std::floor(steps)) + (drift > 0.0 ? 0 : 1);
  return {.width = std::max(kernel, 2 * reach + 1), .shift = shift};
}

void Backend::store_queries(const StoreQueriesArgs& args) {
  check_place(*this, "q", args.q);
  check_shape(*this, args.shape, args.cache);
  for (const StoreQueriesSegment& segment : args.segments) {
    check_ring(segment.ring, args.shape, args.cache);
    CHECK(segment.row_begin >= 0 && segment.num_rows >= 0 &&
          segment.row_begin + segment.num_rows <= args.q.rows)
        << "rows [" << segment.row_begin << ", +" << segment.num_rows << ") of " << args.q.rows;
  }
  do_store_queries(args);
}

void Backend::factor_projection(const FactorProjectionArgs& args) {
  check_place(*this, "weight", args.weight);
  check_place(*this, "out", args.out);
  const ConstTensor& w = args.weight;
  CHECK(w && w.rows > 0 && w.dtype != DType::kI32 && w.dtype != DType::kU8 &&
        w.cols % dtype_info(w.dtype).block_elems == 0)
      << "weight is " << dtype_info(w.dtype).name << " [" << w.rows << ", " << w.cols << "]";
  CHECK(args.num_heads > 0 && w.cols % args.num_heads == 0) << w.cols << " over " << args.num_heads;
  CHECK(args.out && args.out.dtype == DType::kF32 && args.out.rows == w.cols &&
        args.out.cols == w.cols / args.num_heads)
      << "out is " << dtype_info(args.out.dtype).name << " [" << args.out.rows << ", " << args.out.cols
      << "]";
  do_factor_projection(args);
}

void Backend::observe(const ObserveArgs& args) {
  check_shape(*this, args.shape, args.cache);
  CHECK(needs_observation(args.spec.kind)) << static_cast<int>(args.spec.kind);
  for (const ObserveItem& item : args.items) {
    check_rows(*this, item.rows, args.shape, args.cache);
    check_queries(*this, item.queries, args.shape, args.cache);
    check_projection(*this, item.projection, args.shape);
    check_observation(*this, item.out, args.spec, args.shape, max_rows(item.rows, args.shape.num_kv_heads),
                      item.queries.positions.size());
  }
  do_observe(args);
}

void Backend::score(const ScoreArgs& args) {
  check_shape(*this, args.shape, args.cache);
  for (const ScoreItem& item : args.items) {
    const int64_t rows = max_rows(item.rows, args.shape.num_kv_heads);
    check_rows(*this, item.rows, args.shape, args.cache);
    if (needs_observation(args.spec.kind)) check_queries(*this, item.queries, args.shape, args.cache);
    check_projection(*this, item.projection, args.shape);
    check_observation(*this, item.observation, args.spec, args.shape, rows, item.queries.positions.size());
    check_place(*this, "scores", item.out);
    CHECK(item.out.rows == args.shape.num_kv_heads && item.out.cols >= rows)
        << "scores [" << item.out.rows << ", " << item.out.cols << "] of " << rows << " rows";
  }
  do_score(args);
}

void Backend::smooth(const SmoothArgs& args) {
  CHECK(args.kernel >= 1 && args.scale >= 1) << args.kernel << ", " << args.scale;
  for (const SmoothItem& item : args.items) {
    const int64_t rows = max_rows(item.rows, args.shape.num_kv_heads);
    check_place(*this, "in", item.in);
    check_place(*this, "out", item.out);
    CHECK(item.in.data != item.out.data && item.in.cols >= rows && item.out.cols >= rows) << rows << " rows";
    CHECK(args.kind != PoolKind::kAdaptive || item.observation.mean_index) << "no drift";
  }
  do_smooth(args);
}

void Backend::select(const SelectArgs& args) {
  for (const SelectItem& item : args.items) {
    const int64_t rows = max_rows(item.rows, args.num_kv_heads);
    CHECK(item.num_scores >= 1 && item.num_scores <= 3) << item.num_scores;
    for (int32_t i = 0; i < item.num_scores; ++i) {
      check_place(*this, "scores", item.scores[static_cast<size_t>(i)]);
      CHECK(item.scores[static_cast<size_t>(i)].cols >= rows) << "scores " << i << " of " << rows << " rows";
    }
    check_place(*this, "kept", item.kept);
    CHECK(item.keep != nullptr && item.kept_len != nullptr && item.kept) << "nowhere to write";
    CHECK(args.scope != SelectScope::kShare || item.share != nullptr) << "nowhere to write the shares";
    CHECK(item.max_new_pins == 0 || (item.new_pins != nullptr && item.num_new_pins != nullptr)) << "no pins";
  }
  do_select(args);
}

void Backend::compact(const CompactArgs& args) {
  check_shape(*this, args.shape, args.cache);
  for (const CompactItem& item : args.items) {
    check_rows(*this, item.rows, args.shape, args.cache);
    check_place(*this, "kept", item.kept);
    if (item.sums.pages) check_place(*this, "scores", item.scores);
    for (int32_t h = 0; h < args.shape.num_kv_heads; ++h) {
      CHECK(item.kept_len[h] <= item.rows.num_rows(h) &&
            item.kept_len[h] <= int64_t{item.destination.stride} * args.cache.slots)
          << item.kept_len[h] << " rows to " << item.destination.stride << " pages";
    }
  }
  do_compact(args);
}

}  // namespace restkv
