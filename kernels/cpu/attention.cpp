// Softmax attention of several queries of one KV head over its entries: prefix pages, then scratch rows, one index space.
//   s_j = softcap(scale q.k_j), p_j = exp(s_j - m), out = sum_j p_j v_j / sum_j p_j, lse = m + log(sum_j p_j)
// | tile: 64 entries | one pass of scores, exponentials and weighted sums; updates the span's running softmax
// | span: 256 entries | a running softmax of its own; spans are merged in rising order
// Tiles and spans are aligned to the absolute entry index and a query's arithmetic depends on its own entries alone, in
// rising order, so its bits do not depend on the cut of the prompt, on its neighbours, or on which thread did which span.
// An empty or fully masked row gives zeros and lse = -inf. Entries outside [begin, end) are never read into a sum.
//
// K rows are read as dot products along D (3 queries x 4 entries of accumulators), V rows as sums over entries (3 queries
// x 4 vectors of D): the queries of a group share every load.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/kernel_table.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cpp"
#include "kernels/cpu/targets.h"

#include "kernels/cpu/vector_math.h"
#include "kernels/cpu/weight_blocks.h"

HWY_BEFORE_NAMESPACE();
namespace restkv::cpu::HWY_NAMESPACE {

inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
inline constexpr int kGroup = 3;  // queries side by side
// With more queries than these the tile is read often enough from the first-level cache to hide its first reading.
inline constexpr int64_t kMaxPrefetchQueries = 16;

struct State {  // of one query; dim = D rounded up to whole vectors
  float span_max, span_sum;
  float total_max, total_sum;
  float correction;  // of the tile in progress: exp(old max - new max)
  const float* q;    // [dim], zero padded
  float* span_acc;   // [dim]
  float* total_acc;  // [dim]
  float* scores;     // [64], then weights
  int64_t begin, end;
};

struct Tile {
  int64_t first = 0;               // absolute index of entry 0
  int64_t begin = 0, end = 0;      // entries [begin, end) of the tile are in reach of some query
  const float* k[kAttentionTile];  // [dim] each, valid for [begin, end)
  const float* v[kAttentionTile];
};

struct EntryRows {
  const std::byte* k;
  const std::byte* v;
};

HWY_INLINE EntryRows rows_of(const AttentionEntries& entries, int64_t entry, int64_t row_bytes) {
  if (entry >= entries.prefix_len) {
    const int64_t row = entry - entries.prefix_len;
    return {entries.k + row * entries.k_row_bytes, entries.v + row * entries.v_row_bytes};
  }
  const int32_t page = entries.pages[entry / entries.cache.slots];
  const int64_t offset = entry % entries.cache.slots * row_bytes;
  return {entries.cache.keys(page) + offset, entries.cache.values(page) + offset};
}

// A decode step reads each entry once, from memory, in pages too short for the hardware to see a stream: the next tile's
// rows are asked for into the second-level cache.
void prefetch_tile(const AttentionEntries& entries, int64_t head_dim, int64_t begin, int64_t end) {
  const int64_t row_bytes = bytes_of(entries.dtype, head_dim);
  for (int64_t entry = begin; entry < end; ++entry) {
    const EntryRows rows = rows_of(entries, entry, row_bytes);
    for (int64_t i = 0; i < row_bytes; i += 64) {
      __builtin_prefetch(rows.k + i, 0, 2);
      __builtin_prefetch(rows.v + i, 0, 2);
    }
  }
}

// Points the tile at rows of f32, through a padded copy where the rows are not whole vectors of f32.
void gather_tile(const AttentionEntries& entries, int64_t head_dim, int64_t dim, float* copies, Tile& tile) {
  const int64_t row_bytes = bytes_of(entries.dtype, head_dim);
  const bool copy = entries.dtype != DType::kF32 || dim != head_dim;
  for (int64_t j = tile.begin; j < tile.end; ++j) {
    const auto [k, v] = rows_of(entries, tile.first + j, row_bytes);
    if (copy) {
      float* k_copy = copies + 2 * j * dim;
      float* v_copy = k_copy + dim;
      decode_weights(entries.dtype, k, k_copy, head_dim);
      decode_weights(entries.dtype, v, v_copy, head_dim);
      std::fill(k_copy + head_dim, k_copy + dim, 0.0f);
      std::fill(v_copy + head_dim, v_copy + dim, 0.0f);
      tile.k[j] = k_copy;
      tile.v[j] = v_copy;
    } else {
      tile.k[j] = reinterpret_cast<const float*>(k);
      tile.v[j] = reinterpret_cast<const float*>(v);
    }
  }
}

// scores[64] of N queries for the four entries from j on.
template <int N>
HWY_INLINE void score_entries(State* states, const float* const* k, int64_t j, int64_t dim) {
  V acc[N][4];
  for (auto& row : acc) {
    for (V& v : row) v = zero();
  }
  for (int64_t d = 0; d < dim; d += kLanes) {
    V q[N];
    for (int i = 0; i < N; ++i) q[i] = load(states[i].q + d);
    for (int e = 0; e < 4; ++e) {
      const V kv = load(k[e] + d);
      for (int i = 0; i < N; ++i) acc[i][e] = mul_add(q[i], kv, acc[i][e]);
    }
  }
  for (int i = 0; i < N; ++i) sum4(acc[i][0], acc[i][1], acc[i][2], acc[i][3], states[i].scores + j);
}

template <int N>
HWY_INLINE void score_group(State* states, const Tile& tile, int64_t dim) {
  for (int64_t j = tile.begin / 4 * 4; j < tile.end; j += 4) {
    const float* k[4];  // entries out of reach repeat one in reach; their scores are masked
    for (int64_t e = 0; e < 4; ++e) k[e] = tile.k[std::clamp(j + e, tile.begin, tile.end - 1)];
    score_entries<N>(states, k, j, dim);
  }
}

// Scores to weights relative to the new running maximum of the span.
HWY_INLINE void weigh(State& state, const AttentionShape& shape, const Tile& tile) {
  float* s = state.scores;
  const int64_t begin = std::clamp(state.begin - tile.first, int64_t{0}, kAttentionTile);
  const int64_t end = std::clamp(state.end - tile.first, int64_t{0}, kAttentionTile);
  for (int64_t j = 0; j < begin; ++j) s[j] = kMinusInfinity;
  for (int64_t j = end; j < kAttentionTile; ++j) s[j] = kMinusInfinity;
  const V scale = set1(shape.scale);
  const V cap = set1(shape.softcap);
  V best = set1(kMinusInfinity);
  for (int64_t j = 0; j < kAttentionTile; j += kLanes) {
    V v = load(s + j) * scale;
    if (shape.softcap > 0.0f) {
      const V masked = load(s + j);
      v = select_less(masked, set1(std::numeric_limits<float>::lowest()), masked, cap * tanh(v / cap));
    }
    store(v, s + j);
    best = max(v, best);
  }
  const float new_max = std::max(state.span_max, max_lane(best));
  // with no finite score yet, weights are exp(-inf - 0) = 0, and NaN stays NaN
  const float base = new_max == kMinusInfinity ? 0.0f : new_max;
  const V base_v = set1(base);
  V total = zero();
  for (int64_t j = 0; j < kAttentionTile; j += kLanes) {
    const V p = exp(load(s + j) - base_v);
    store(p, s + j);
    total = total + p;
  }
  alignas(64) float correction[kLanes];
  store(exp(set1(state.span_max - base)), correction);
  state.correction = correction[0];
  state.span_sum = state.span_sum * state.correction + sum(total);
  state.span_max = new_max;
}

// span_acc[d..d + NV vectors) = span_acc * correction + sum_j p_j v_j, j in rising order for every query.
template <int N, int NV>
HWY_INLINE void add_values(State* states, const Tile& tile, int64_t d) {
  int64_t begin[N], end[N];
  int64_t all_begin = 0, all_end = kAttentionTile;  // entries that all N queries see
  V acc[N][NV];
  for (int i = 0; i < N; ++i) {
    begin[i] = std::max(states[i].begin - tile.first, int64_t{0});
    end[i] = std::min(states[i].end - tile.first, kAttentionTile);
    all_begin = std::max(all_begin, begin[i]);
    all_end = std::min(all_end, end[i]);
    const V correction = set1(states[i].correction);
    for (int n = 0; n < NV; ++n) acc[i][n] = load(states[i].span_acc + d + n * kLanes) * correction;
  }
  if (all_begin >= all_end) all_begin = all_end = kAttentionTile;  // each on its own
  for (int i = 0; i < N; ++i) {
    for (int64_t j = begin[i]; j < std::min(all_begin, end[i]); ++j) {
      const V p = set1(states[i].scores[j]);
      for (int n = 0; n < NV; ++n) acc[i][n] = mul_add(p, load(tile.v[j] + d + n * kLanes), acc[i][n]);
    }
  }
  for (int64_t j = all_begin; j < all_end; ++j) {
    V p[N];
    for (int i = 0; i < N; ++i) p[i] = set1(states[i].scores[j]);
    for (int n = 0; n < NV; ++n) {
      const V v = load(tile.v[j] + d + n * kLanes);
      for (int i = 0; i < N; ++i) acc[i][n] = mul_add(p[i], v, acc[i][n]);
    }
  }
  for (int i = 0; i < N; ++i) {
    for (int64_t j = all_end; j < end[i]; ++j) {
      const V p = set1(states[i].scores[j]);
      for (int n = 0; n < NV; ++n) acc[i][n] = mul_add(p, load(tile.v[j] + d + n * kLanes), acc[i][n]);
    }
    for (int n = 0; n < NV; ++n) store(acc[i][n], states[i].span_acc + d + n * kLanes);
  }
}

template <int N>
HWY_INLINE void add_values_group(State* states, const Tile& tile, int64_t dim) {
  int64_t d = 0;
  for (; d + 4 * kLanes <= dim; d += 4 * kLanes) add_values<N, 4>(states, tile, d);
  for (; d < dim; d += kLanes) add_values<N, 1>(states, tile, d);
}

// One tile for the queries that see any of it. Ranges rise with the query, so those are consecutive.
void attend_tile(const AttentionShape& shape, const AttentionEntries& entries, State* states,
                 int64_t num_queries, int64_t first, int64_t dim, float* copies) {
  const int64_t last = first + kAttentionTile;
  while (num_queries > 0 && states[0].end <= first) ++states, --num_queries;
  while (num_queries > 0 && states[num_queries - 1].begin >= last) --num_queries;
  if (num_queries == 0) return;
  Tile tile;
  tile.first = first;
  tile.begin = std::max(states[0].begin - first, int64_t{0});
  tile.end = std::min(states[num_queries - 1].end - first, kAttentionTile);
  if (tile.begin >= tile.end)
    return;  // every query left has an empty range: all its entries are out of sight
  gather_tile(entries, shape.head_dim, dim, copies, tile);
  const int64_t reach = states[num_queries - 1].end;
  if (num_queries <= kMaxPrefetchQueries && last < reach) {
    prefetch_tile(entries, shape.head_dim, last, std::min(last + kAttentionTile, reach));
  }
  for (int64_t i = 0; i < num_queries; i += kGroup) {
    switch (std::min<int64_t>(kGroup, num_queries - i)) {
      case 1: score_group<1>(states + i, tile, dim); break;
      case 2: score_group<2>(states + i, tile, dim); break;
      default: score_group<3>(states + i, tile, dim); break;
    }
  }
  for (int64_t i = 0; i < num_queries; ++i) weigh(states[i], shape, tile);
  for (int64_t i = 0; i < num_queries; i += kGroup) {
    switch (std::min<int64_t>(kGroup, num_queries - i)) {
      case 1: add_values_group<1>(states + i, tile, dim); break;
      case 2: add_values_group<2>(states + i, tile, dim); break;
      default: add_values_group<3>(states + i, tile, dim); break;
    }
  }
}

// total = total merged with a span; a span without entries changes nothing.
HWY_INLINE void merge_span(float& total_max, float& total_sum, float* total_acc, float span_max,
                           float span_sum, const float* span_acc, int64_t dim) {
  if (span_sum == 0.0f) return;
  if (total_sum == 0.0f) {
    total_max = span_max;
    total_sum = span_sum;
    std::copy(span_acc, span_acc + dim, total_acc);
    return;
  }
  const float new_max = std::max(total_max, span_max);
  alignas(64) float lanes[kLanes];
  store(exp(set1(total_max - new_max)), lanes);
  const float old_factor = lanes[0];
  store(exp(set1(span_max - new_max)), lanes);
  const float new_factor = lanes[0];
  total_sum = total_sum * old_factor + span_sum * new_factor;
  total_max = new_max;
  const V old_v = set1(old_factor), new_v = set1(new_factor);
  for (int64_t d = 0; d < dim; d += kLanes) {
    store(mul_add(load(span_acc + d), new_v, load(total_acc + d) * old_v), total_acc + d);
  }
}

HWY_INLINE void write_result(const AttentionQuery& query, int64_t head_dim, float total_max, float total_sum,
                             const float* total_acc) {
  const float factor = total_sum == 0.0f ? 0.0f : 1.0f / total_sum;
  for (int64_t d = 0; d < head_dim; ++d) query.out[d] = total_sum == 0.0f ? 0.0f : total_acc[d] * factor;
  if (query.lse != nullptr) *query.lse = total_sum == 0.0f ? kMinusInfinity : total_max + std::log(total_sum);
}

int64_t whole_vectors(int64_t head_dim) { return (head_dim + kLanes - 1) / kLanes * kLanes; }

struct Scratch {
  State* states;  // [num_queries]
  float* copies;  // [64, 2, dim]
};

Scratch lay_out(const AttentionQuery* queries, int64_t num_queries, int64_t head_dim,
                const Workspace& workspace) {
  const int64_t dim = whole_vectors(head_dim);
  auto* states = reinterpret_cast<State*>(workspace.data);
  float* floats = reinterpret_cast<float*>(
      workspace.data + (num_queries * static_cast<int64_t>(sizeof(State)) + 63) / 64 * 64);
  for (int64_t i = 0; i < num_queries; ++i) {
    float* q = floats;
    std::copy(queries[i].q, queries[i].q + head_dim, q);
    std::fill(q + head_dim, q + dim, 0.0f);
    states[i] = {.span_max = kMinusInfinity,
                 .span_sum = 0.0f,
                 .total_max = kMinusInfinity,
                 .total_sum = 0.0f,
                 .correction = 0.0f,
                 .q = q,
                 .span_acc = q + dim,
                 .total_acc = q + 2 * dim,
                 .scores = q + 3 * dim,
                 .begin = queries[i].begin,
                 .end = queries[i].end};
    floats += 3 * dim + kAttentionTile;
  }
  return {states, floats};
}

void attend_tiles(const AttentionShape& shape, const AttentionEntries& entries, const Scratch& scratch,
                  int64_t num_queries, int64_t span) {
  const int64_t dim = whole_vectors(shape.head_dim);
  State* states = scratch.states;
  for (int64_t i = 0; i < num_queries; ++i) {
    states[i].span_max = kMinusInfinity;
    states[i].span_sum = 0.0f;
    std::fill(states[i].span_acc, states[i].span_acc + dim, 0.0f);
  }
  for (int64_t first = span * kAttentionSpan; first < (span + 1) * kAttentionSpan; first += kAttentionTile) {
    attend_tile(shape, entries, states, num_queries, first, dim, scratch.copies);
  }
}

void attend(const AttentionShape& shape, const AttentionEntries& entries, const AttentionQuery* queries,
            int64_t num_queries, const Workspace& workspace) {
  const int64_t dim = whole_vectors(shape.head_dim);
  const Scratch scratch = lay_out(queries, num_queries, shape.head_dim, workspace);
  const int64_t end = queries[num_queries - 1].end;
  for (int64_t span = queries[0].begin / kAttentionSpan; span * kAttentionSpan < end; ++span) {
    attend_tiles(shape, entries, scratch, num_queries, span);
    for (int64_t i = 0; i < num_queries; ++i) {
      State& s = scratch.states[i];
      merge_span(s.total_max, s.total_sum, s.total_acc, s.span_max, s.span_sum, s.span_acc, dim);
    }
  }
  for (int64_t i = 0; i < num_queries; ++i) {
    const State& s = scratch.states[i];
    write_result(queries[i], shape.head_dim, s.total_max, s.total_sum, s.total_acc);
  }
}

void attend_span(const AttentionShape& shape, const AttentionEntries& entries, const AttentionQuery* queries,
                 int64_t num_queries, int64_t span, AttentionPartial* partials, const Workspace& workspace) {
  const int64_t dim = whole_vectors(shape.head_dim);
  const Scratch scratch = lay_out(queries, num_queries, shape.head_dim, workspace);
  attend_tiles(shape, entries, scratch, num_queries, span);
  for (int64_t i = 0; i < num_queries; ++i) {
    const State& s = scratch.states[i];
    partials[i].max = s.span_max;
    partials[i].sum = s.span_sum;
    std::copy(s.span_acc, s.span_acc + dim, partials[i].acc);
  }
}

void merge_spans(const AttentionQuery& query, int32_t head_dim, const AttentionPartial* partials,
                 int64_t num_spans, const Workspace& workspace) {
  const int64_t dim = whole_vectors(head_dim);
  float* acc = reinterpret_cast<float*>(workspace.data);
  float max = kMinusInfinity, sum = 0.0f;
  for (int64_t i = 0; i < num_spans; ++i) {
    merge_span(max, sum, acc, partials[i].max, partials[i].sum, partials[i].acc, dim);
  }
  write_result(query, head_dim, max, sum, acc);
}

void fill_attention(KernelTable& table) {
  table.attend = attend;
  table.attend_span = attend_span;
  table.merge_spans = merge_spans;
}

}  // namespace restkv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace restkv::cpu {

HWY_EXPORT(fill_attention);
void set_attention_kernels(KernelTable& table) { HWY_DYNAMIC_DISPATCH(fill_attention)(table); }

}  // namespace restkv::cpu
#endif
