// The five steps of eviction as ops: observe, score, smooth, select, compact; store_queries, which fills the ring;
// and factor_projection, which makes of a layer's output projection what observe and score multiply with.
//   observe  queries of the window look at the cached rows: softmax statistics and the heads' outputs
//   score    one number for each (KV head, row): how much its removal hurts (restkv.md, arXiv 2605.08840 eq. 7)
//   smooth   pooling over neighbouring positions, after prefill only
//   select   which rows stay, as sorted row indices; never more than asked for
//   compact  the rows that stay move together, in position order, into the sequence's pages
// Each op takes a ragged batch of items; an item is one (sequence, layer), its KV heads may hold different
// numbers of rows. Letters: H query heads, K KV heads, G = H/K, D head dim, N rows of a head, Q queries, Qp =
// Q rounded up to 16.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "kernels/base/arena.h"
#include "kernels/base/attention_shape.h"
#include "kernels/base/paged_cache.h"
#include "kernels/base/score_reduce.h"
#include "kernels/base/tensor.h"

namespace restkv {

// The rows of one (sequence, layer): entries in pages, then scratch rows. Row j of head h:
//   [0, kv_len[h]) pages | [kv_len[h], kv_len[h] + N) scratch row j - kv_len[h] at position first_position +
//   that
struct RowSource {
  HeadTables pages = {};       // kv_len null: no paged part
  ConstTensor k = {}, v = {};  // [N, K*D] f32, f16 or bf16; empty in a decode event
  int32_t first_position = 0;  // of scratch row 0

  int32_t num_rows(int32_t head) const {
    return (pages.kv_len ? pages.kv_len[head] : 0) + static_cast<int32_t>(k ? k.rows : 0);
  }
};

// Whether the scores of a head decide anything.
inline bool needs_scores(const RowSource& rows, const int32_t* keep, int32_t kv_head) {
  return keep == nullptr || rows.num_rows(kv_head) > keep[kv_head];
}

// The last W rotated queries of one (sequence, layer), in pages of the cache's pool. The 2*S*D values of a
// page's K and V are 2*S rows of D; the query of position p and head g of the group lies in row (p % W) * G +
// g of its KV head's pages.
struct QueryRing {
  const int32_t* pages = nullptr;     // [K, stride] page ids
  int32_t stride = 0;                 // ids per KV head: num_pages()
  int32_t window = 0;                 // W
  const int32_t* resident = nullptr;  // `pages` in the backend's memory, where they are there too

  static int32_t num_pages(int32_t window, int32_t group, int32_t slots) {
    return (window * group + 2 * slots - 1) / (2 * slots);
  }
};

// One f32 a cached entry (h2o's sums), in pages of the same pool: entry j is float j % F of page j / F, where
// F is the number of floats that fit K and V of a page.
struct EntrySums {
  const int32_t* pages = nullptr;  // [K, stride] page ids
  int32_t stride = 0;
  const int32_t* len = nullptr;       // [K] entries that have a sum; later ones start from 0
  const int32_t* resident = nullptr;  // `pages` in the backend's memory, where they are there too

  static int32_t floats_per_page(DType dtype, int32_t slots, int32_t head_dim) {
    return static_cast<int32_t>(2 * bytes_of(dtype, int64_t{slots} * head_dim) / 4);
  }
};

struct QuerySource {
  ConstTensor rows = {};  // [Q, H*D] f32, rotated; empty: from the ring
  QueryRing ring = {};
  std::span<const int32_t> positions = {};  // [Q] ascending; a query sees rows at its position or before
};

struct StoreQueriesSegment {
  int64_t row_begin = 0;
  int64_t num_rows = 0;  // only the last W of them are stored
  QueryRing ring = {};
};
struct StoreQueriesArgs {
  AttentionShape shape = {};
  ConstTensor q = {};                       // [T, H*D] f32, rotated
  std::span<const int32_t> positions = {};  // [T]
  std::span<const StoreQueriesSegment> segments = {};
  PagedCacheView cache = {};
};

// R_g of every query head, once for each layer: ||R_g x|| = ||W_g x|| for every x, W_g [M, D] the columns of head g (restkv.md
// section 3; 1/32 of the work of W_g for an 8B model). From the Gram matrix W_g^T W_g, in f64. A head with a weight that is not
// finite has NaN everywhere in its triangle.
struct FactorProjectionArgs {
  ConstTensor weight = {};  // [M, H*D] W_o, where place_weight put it
  int32_t num_heads = 0;    // H
  Tensor out = {};  // [H*D, D] f32: R_g transposed, head below head: out[g*D + d][e] = R_g[e][d], 0 for e > d
};

enum class ScoreKind : uint8_t {
  kRecency,         // the position
  kHash,            // a hash of (layer, head, position) in [0, 1)
  kLadder,          // lacache: a range of positions for each layer, then recency
  kAttention,       // sum over queries, mean over the group
  kIndicatorQuery,  // e_tgj = a/(1-a) * ||R_g (o_tg - v_j)||^tau for each query ('before'), then over queries
                    // and group
  kIndicatorAfter,  // attention smoothed over the queries first ('after'), o without the window's rows
};
inline bool needs_observation(ScoreKind kind) { return kind >= ScoreKind::kAttention; }

// How rows are scored; the same for observe and score.
struct ScoreSpec {
  ScoreKind kind = ScoreKind::kIndicatorQuery;
  QueryReduce reduce = QueryReduce::kRms;  // kIndicatorAfter: kEma or kMean, of attention
  GroupReduce group = GroupReduce::kRss;
  float alpha = 0.3f;  // of kEma: alpha * new + (1 - alpha) * old, from the oldest query on
  float tau = 1.0f;
  bool normalize = false;    // kIndicatorQuery: divided by ||R_g o_tg||
  int32_t ladder_span = 16;  // kLadder: layers that keep one range
  int32_t num_layers = 0;    // kLadder
  bool operator==(const ScoreSpec&) const = default;
};

// What observe leaves for score and smooth. Memory is the caller's, sized for the largest N and Q by make().
// `top` is the row with the largest logit of a query; the others' mass and mean output are formed without it,
// so the singular row (a > 1/2) has no 1 - a to lose digits in.
struct Observation {
  Tensor lse =
      {};  // [H, Qp] log-sum-exp of the visible logits; +inf with top -1: the query sees nothing and is skipped
  Tensor top = {};   // [H, Qp] i32
  Tensor rest = {};  // [H, Qp] sum over the other rows of exp(logit - top's logit): a_top = 1 / (1 + rest)
  Tensor p = {};     // [H*D, Qp] R_g (o_tg - v_mean), a column for each query; kIndicatorAfter: column 0 only
  // [H*D, Qp] R_g (o'_tg - v_mean), o' = mean output of the rows but top; told only where a_top > 1/2
  Tensor p_rest = {};
  Tensor norm = {};        // [H, Qp] ||R_g o_tg||
  Tensor v_mean = {};      // [K, D]
  Tensor ratio = {};       // [H, N] a/(1-a) of the smoothed attention; kIndicatorAfter only
  Tensor partial = {};     // [ceil(N/kRowChunk) * H, D] partial outputs; kIndicatorAfter only
  Tensor mean_index = {};  // [H, Qp] mean index of a query's top rows (for the drift)
  // [H*N, Qp] logits of row j for the queries of head h in row h*N + j, capped and masked; kIndicatorQuery on a backend that
  // keeps_logits(), where score then needs neither keys nor queries. Empty: it makes them again, with the same bits.
  Tensor logits = {};

  static constexpr int32_t kRowChunk = 256;
  static Observation make(Arena& arena, const AttentionShape& shape, ScoreKind kind, int64_t max_queries,
                          int64_t max_rows, bool with_logits = false) {
    const int64_t h = shape.num_heads, d = shape.head_dim, qp = (max_queries + 15) / 16 * 16;
    Observation o;
    if (!needs_observation(kind)) return o;
    o.lse = arena.tensor(DType::kF32, h, qp);
    o.top = arena.tensor(DType::kI32, h, qp);
    o.rest = arena.tensor(DType::kF32, h, qp);
    o.mean_index = arena.tensor(DType::kF32, h, qp);
    if (kind == ScoreKind::kAttention) return o;
    o.p = arena.tensor(DType::kF32, h * d, qp);
    o.p_rest = arena.tensor(DType::kF32, h * d, qp);
    o.norm = arena.tensor(DType::kF32, h, qp);
    o.v_mean = arena.tensor(DType::kF32, shape.num_kv_heads, d);
    if (kind == ScoreKind::kIndicatorQuery && with_logits)
      o.logits = arena.tensor(DType::kF32, h * max_rows, qp);
    if (kind == ScoreKind::kIndicatorAfter) {
      o.ratio = arena.tensor(DType::kF32, h, max_rows);
      o.partial = arena.tensor(DType::kF32, (max_rows + kRowChunk - 1) / kRowChunk * h, d);
    }
    return o;
  }
};

struct ObserveItem {
  RowSource rows = {};
  QuerySource queries = {};
  ConstTensor projection = {};          // [H*D, D] f32, of factor_projection; empty: value space
  int32_t window_rows = 0;              // last rows that kIndicatorAfter leaves out
  const int32_t* drift_rows = nullptr;  // [K] rows of a query's top set for mean_index; null: no drift
  const int32_t* keep = nullptr;        // as in score
  Observation out = {};
};
struct ObserveArgs {
  AttentionShape shape = {};
  ScoreSpec spec = {};
  std::span<const ObserveItem> items = {};
  PagedCacheView cache = {};
};

// Rows that always stay:
//   positions [0, head_end) | [tail_begin, tail_end) | pinned positions | the last `recent` rows
// and rows at positions before `dead_before` (outside the window of a windowed layer) never do, while others
// are there.
struct ProtectedRows {
  int32_t head_end = 0;
  int32_t tail_begin = 0, tail_end = 0;
  int32_t recent = 0;
  int32_t dead_before = 0;
  const int32_t* pins = nullptr;  // [K, pin_stride] positions, ascending
  int32_t pin_stride = 0;
  const int32_t* num_pins = nullptr;  // [K]
};

struct ScoreItem {
  RowSource rows = {};
  QuerySource queries = {};
  ConstTensor projection = {};  // as in observe
  int32_t window_rows = 0;  // as in observe; kIndicatorAfter scores 0 there; kLadder: the last rows, left out
  int32_t head_rows = 0;    // kLadder: the first rows, left out
  int32_t layer = 0;        // kHash, kLadder
  const EntrySums* sums = nullptr;  // kAttention: added to the scores of entries that have one
  bool accumulate = false;          // kAttention: added to `out` (h2o's pass over the chunks of a prompt)
  // Indicators: rows whose place does not depend on their score (protected, dead) get 0. Empty: all are scored, as the
  // pooling after prefill wants it.
  ProtectedRows protect = {};
  // [K] rows that select will keep. A head that holds no more keeps them all whatever their scores: a backend may leave it
  // out of observe and give its rows 0. Null: every head's scores are wanted.
  const int32_t* keep = nullptr;
  Observation observation = {};
  Tensor out = {};  // [K, >= N] f32
};
struct ScoreArgs {
  AttentionShape shape = {};
  ScoreSpec spec = {};
  std::span<const ScoreItem> items = {};
  PagedCacheView cache = {};
};

enum class PoolKind : uint8_t {
  kNone,
  kAvg,       // centred, zeros at the edges, divided by the kernel
  kMax,       // centred
  kAdaptive,  // centred and shifted by the drift of the window's attention, edges repeated (restkv.md section
              // 2)
  kForward,   // row j takes the best of rows j - kernel + 1 .. j
};
// Rows that are not finite count as 0 for their neighbours and stay first themselves. Centred kinds see the
// rows [0, N - window_rows) only; the others are copied.
struct SmoothItem {
  RowSource rows = {};  // for the lengths
  ConstTensor in = {};  // [K, >= N]
  Tensor out = {};      // [K, >= N], not `in`
  int32_t window_rows = 0;
  int32_t num_queries = 0;       // Q, kAdaptive
  Observation observation = {};  // kAdaptive: mean_index
};
struct SmoothArgs {
  AttentionShape shape = {};
  PoolKind kind = PoolKind::kNone;
  int32_t kernel = 5;
  int32_t scale = 2000;  // kAdaptive: positions of drift that shift by one
  std::span<const SmoothItem> items = {};
};

// More steps of drift count as so many: what a row costs to pool is bounded, whatever `scale` a request asks for.
inline constexpr int32_t kMaxDriftSteps = 4096;
// Drift t (earlier half of the queries minus later half) -> width and shift of the adaptive kernel.
struct AdaptiveKernel {
  int32_t width = 0;
  int32_t shift = 0;
};
AdaptiveKernel adaptive_kernel(double drift, int32_t kernel, int32_t scale);

enum class SelectScope : uint8_t {
  kHead,   // each KV head by its own scores
  kLayer,  // one set for all heads, by the mean of their scores (tova); heads hold equally many rows
  kShare,  // the heads share the sum of `keep` by their scores (ada), each at least `floor` rows
};

// With m score arrays, rows are kept by ascending min over i of m * rank_i + i; ranks are 0-based in their
// own array, protected rows first, ties newer first. One array: simply the best rows.
struct SelectItem {
  RowSource rows = {};
  std::array<ConstTensor, 3> scores = {};  // [K, >= N] each, the first num_scores are given
  int32_t num_scores = 1;
  const int32_t* keep = nullptr;  // [K] rows to keep at most; kShare: C_lh before sharing
  ProtectedRows protect = {};
  int32_t floor = 0;              // kShare
  int32_t slack = 0;              // kShare: rows fewer than the head's share are kept
  int32_t* share = nullptr;       // [K] out, kShare: rows of each head's share; C_lh from now on
  Tensor kept = {};               // [K, >= max keep] i32 out: row indices, ascending
  int32_t* kept_len = nullptr;    // [K] out, at once: `keep`, or all rows; kShare: what became of it
  int32_t* num_dead = nullptr;    // [K] out, awaited as all below: rows dropped because of dead_before
  int32_t* non_finite = nullptr;  // [K] out: scores that were NaN or inf
  // Rows that arrays 1 and 2 brought in, best first, at most max_new_pins: their positions, ascending.
  int32_t max_new_pins = 0;
  int32_t* new_pins = nullptr;      // [K, max_new_pins] out
  int32_t* num_new_pins = nullptr;  // [K] out
};
struct SelectArgs {
  int32_t num_kv_heads = 0;
  SelectScope scope = SelectScope::kHead;
  std::span<const SelectItem> items = {};
  PagedCacheView cache = {};
};

// Entry i of the destination becomes row kept[i]. The destination may be the source's own pages: a row never
// moves up.
struct CompactItem {
  RowSource rows = {};
  ConstTensor kept = {};              // [K, cap] i32, ascending; empty: entry i becomes row i
  const int32_t* kept_len = nullptr;  // [K]
  HeadTables destination = {};        // pages to write; kv_len is not read
  ConstTensor scores = {};            // [K, >= N] f32, with `sums`
  EntrySums sums = {};                // pages null: none; else sums[i] = scores[kept[i]]
  int64_t* moved = nullptr;           // [K] out, awaited: rows that were written
};
struct CompactArgs {
  AttentionShape shape = {};
  std::span<const CompactItem> items = {};
  PagedCacheView cache = {};
};

}  // namespace restkv
