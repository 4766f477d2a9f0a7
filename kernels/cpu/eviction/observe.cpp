// observe: softmax statistics of each (query, head) over the rows it sees, in one pass over tiles of K and V.
// The running top row is kept apart from the rest:
//   top logit m | rest = sum_{i != top} exp(l_i - m) | acc = sum_{i != top} exp(l_i - m) v_i
// When a larger logit comes, the old top row joins the rest. Then a_top = 1 / (1 + rest) and the mean output of the other
// rows acc / rest are exact even where a_top rounds to 1 (eviction_math.md section 1).
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/eviction/drift.h"
#include "kernels/cpu/eviction/eviction_ops.h"
#include "kernels/cpu/eviction/row_tile.h"
#include "kernels/cpu/eviction/tile_kernels.h"

namespace restkv::cpu {
namespace {

constexpr int64_t kQueryBlock = 16;
constexpr float kInf = std::numeric_limits<float>::infinity();

struct ObserveRun : ObserveArgs {
  const TileKernels& kernels;
};

struct QueryStats {
  std::array<float, kQueryBlock> top_logit, rest;
  std::array<int32_t, kQueryBlock> top;
};

// v_mean[h] = mean of the rows of V of a KV head: projections are taken around it, so that no digits are lost on values
// far from 0. Here for kIndicatorAfter; observe_block takes it along.
void mean_values(const ObserveRun& args, const ObserveItem& item, int32_t head) {
  const int64_t dim = args.shape.head_dim;
  const HeadRows rows(item.rows, args.shape, args.cache, head);
  float* v = thread_floats(Buffer::kValues, kTileRows * dim);
  float* mean = item.out.v_mean.f32(head);
  std::fill(mean, mean + dim, 0.0f);
  for (int64_t begin = 0; begin < rows.num_rows; begin += kTileRows) {
    const int64_t count = std::min(kTileRows, rows.num_rows - begin);
    rows.load_values(begin, count, v);
    args.kernels.add_rows(v, count, dim, mean);
  }
  for (int64_t d = 0; d < dim; ++d) mean[d] /= static_cast<float>(std::max<int64_t>(1, rows.num_rows));
}

// logits [count, stride] of a tile, capped and masked, for `width` queries (a multiple of 16, the first num_queries are some).
void tile_logits(const ObserveRun& args, const float* keys, const float* queries,
                 const int32_t* row_positions, const int32_t* query_positions, int64_t num_queries,
                 int64_t count, int64_t width, float* logits, int64_t stride) {
  const int64_t dim = args.shape.head_dim;
  args.kernels.product(keys, dim, 1, queries, width, count, width, dim, logits, stride, false);
  if (args.shape.softcap > 0.0f) {
    for (int64_t j = 0; j < count; ++j) args.kernels.softcap(logits + j * stride, width, args.shape.softcap);
  }
  mask_logits(logits, count, stride, row_positions, query_positions, num_queries, args.shape.window);
}

// What a block of queries of one head has seen: statistics, and with values the sums [D, kQueryBlock], a column a query.
struct BlockState {
  int32_t head = 0;
  int64_t first = 0, block = 0;  // queries [first, first + block)
  QueryStats stats;
  float* acc = nullptr;        // of the rows but the top one; null without values
  float* top_value = nullptr;  // the top row's
};

// One tile joins: logits [count, stride] of the block, values [count, D]. `weights` [count, kQueryBlock] may be the logits.
void add_tile(const TileKernels& kernels, BlockState& state, const float* logits, int64_t stride,
              int64_t begin, int64_t count, const float* values, int64_t dim, float* weights) {
  QueryStats& stats = state.stats;
  std::array<float, kQueryBlock> best = stats.top_logit;
  std::array<float, kQueryBlock> best_row;  // of the tile, -1: none is above the top so far
  best_row.fill(-1.0f);
  kernels.column_max(logits, stride, count, best.data(), best_row.data());
  // The sums so far count `factor` from now on, the old top row `share`.
  std::array<float, kQueryBlock> shift, factor, share;
  bool is_joined = false;
  for (size_t t = 0; t < kQueryBlock; ++t) {
    factor[t] = 1.0f;
    share[t] = 0.0f;
    if (best_row[t] >= 0.0f) {
      if (stats.top[t] >= 0) {
        is_joined = true;
        factor[t] = share[t] = std::exp(stats.top_logit[t] - best[t]);
        stats.rest[t] = stats.rest[t] * factor[t] + factor[t];
      }
      stats.top_logit[t] = best[t];
      stats.top[t] = static_cast<int32_t>(begin) + static_cast<int32_t>(best_row[t]);
    }
    shift[t] = stats.top[t] >= 0 ? stats.top_logit[t] : 0.0f;
  }
  if (values) {
    if (is_joined) kernels.join_columns(state.top_value, dim, factor.data(), share.data(), state.acc);
    for (size_t t = 0; t < kQueryBlock; ++t) {
      if (best_row[t] < 0.0f) continue;
      const float* value = values + static_cast<int64_t>(best_row[t]) * dim;
      for (int64_t d = 0; d < dim; ++d) state.top_value[d * kQueryBlock + static_cast<int64_t>(t)] = value[d];
    }
  }
  kernels.exp_columns(logits, stride, nullptr, count, kQueryBlock, shift.data(), weights);
  for (size_t t = 0; t < kQueryBlock; ++t) {
    if (best_row[t] >= 0.0f)
      weights[static_cast<int64_t>(best_row[t]) * kQueryBlock + static_cast<int64_t>(t)] = 0.0f;
  }
  kernels.column_sums(weights, count, stats.rest.data());
  if (values)
    kernels.product(values, 1, dim, weights, kQueryBlock, dim, kQueryBlock, count, state.acc, kQueryBlock,
                    true);
}

// R_g x for the columns of x [D, kQueryBlock] -> y [D, y_stride]; x itself where there is no projection.
void project(const ObserveRun& args, const ObserveItem& item, int32_t head, const float* x, float* y,
             int64_t y_stride) {
  constexpr int64_t kStep = 8;  // rows of R_g: what is left of its diagonal is 0
  const int64_t dim = args.shape.head_dim;
  for (int64_t e = 0; e < dim; e += kStep) {
    const int64_t rows = std::min(kStep, dim - e);
    if (item.projection) {
      const int64_t stride = item.projection.stride;
      args.kernels.product(item.projection.f32(head * dim + e) + e, 1, stride, x + e * kQueryBlock,
                           kQueryBlock, rows, kQueryBlock, dim - e, y + e * y_stride, y_stride, false);
    } else {
      for (int64_t i = e; i < e + rows; ++i) std::copy_n(x + i * kQueryBlock, kQueryBlock, y + i * y_stride);
    }
  }
}

// R_g of the columns of x [D, kQueryBlock] -> columns [first, first + kQueryBlock) of out [H*D, stride], of which `block` are
// queries.
void project_columns(const ObserveRun& args, const ObserveItem& item, int32_t head, const float* x,
                     int64_t block, int64_t first, const Tensor& out) {
  const int64_t dim = args.shape.head_dim;
  project(args, item, head, x, out.f32(head * dim) + first, out.stride);
  if (block == kQueryBlock) return;
  for (int64_t e = 0; e < dim; ++e) {  // padding: finite, its weights are 0
    float* row = out.f32(head * dim + e) + first;
    std::fill(row + block, row + kQueryBlock, 0.0f);
  }
}

// ||R_g o|| of the full outputs of a block.
void output_norms(const ObserveRun& args, const ObserveItem& item, const BlockState& state, float* out) {
  const int64_t dim = args.shape.head_dim;
  float* zeros = thread_floats(Buffer::kRows, dim);
  float* output = thread_floats(Buffer::kProjected, 3 * dim * kQueryBlock);
  float* output_rest = output + dim * kQueryBlock;
  float* projected = output_rest + dim * kQueryBlock;
  std::fill(zeros, zeros + dim, 0.0f);
  args.kernels.split_outputs(state.top_value, state.acc, state.stats.rest.data(), zeros, dim, output,
                             output_rest);
  project(args, item, state.head, output, projected, kQueryBlock);
  for (int64_t t = 0; t < state.block; ++t) {
    float sum = 0.0f;
    for (int64_t e = 0; e < dim; ++e) sum += projected[e * kQueryBlock + t] * projected[e * kQueryBlock + t];
    out[t] = std::sqrt(sum);
  }
}

// What a block of queries of one head leaves; mean [D] of the values.
void finish_block(const ObserveRun& args, const ObserveItem& item, BlockState& state, const float* mean) {
  const int64_t dim = args.shape.head_dim, first = state.first, block = state.block;
  const int32_t head = state.head;
  const Observation& out = item.out;
  const QueryStats& stats = state.stats;
  bool has_singular = false;
  for (int64_t t = 0; t < block; ++t) {
    const auto i = static_cast<size_t>(t);
    // A query that sees nothing has top -1; with lse inf all its weights are 0. NaN logits leave NaN in rest.
    const bool is_blind = stats.top[i] < 0 && !(stats.rest[i] != stats.rest[i]);
    out.lse.f32(head)[first + t] = is_blind ? kInf : stats.top_logit[i] + std::log1p(stats.rest[i]);
    static_cast<int32_t*>(out.top.row(head))[first + t] = stats.top[i];
    out.rest.f32(head)[first + t] = stats.rest[i];
    has_singular |= stats.rest[i] < 1.0f;
  }
  for (int64_t t = first + block; t < first + kQueryBlock; ++t) out.lse.f32(head)[t] = kInf;  // padding
  if (!state.acc) return;
  if (args.spec.normalize) output_norms(args, item, state, out.norm.f32(head) + first);
  args.kernels.split_outputs(state.top_value, state.acc, stats.rest.data(), mean, dim, state.top_value,
                             state.acc);
  project_columns(args, item, head, state.top_value, block, first, out.p);
  if (has_singular) project_columns(args, item, head, state.acc, block, first, out.p_rest);
}

// Statistics of `num_blocks` blocks of queries from `first` on, of query heads [head, head + num_heads) of one KV head, whose
// rows are loaded once for all of them; for kIndicatorQuery their outputs too, and the mean of the values.
void observe_blocks(const ObserveRun& args, const ObserveItem& item, int32_t head, int32_t num_heads,
                    int64_t first, int64_t num_blocks) {
  const AttentionShape& shape = args.shape;
  const int64_t dim = shape.head_dim;
  const int32_t group = shape.num_heads / shape.num_kv_heads;
  const int32_t kv_head = head / group;
  const bool with_values = args.spec.kind == ScoreKind::kIndicatorQuery;
  const auto num_queries = static_cast<int64_t>(item.queries.positions.size());
  const HeadRows rows(item.rows, shape, args.cache, kv_head);
  float* keys = thread_floats(Buffer::kKeys, kTileRows * dim);
  float* values = with_values ? thread_floats(Buffer::kValues, kTileRows * dim) : nullptr;
  float* weights = thread_floats(Buffer::kLogits, kTileRows * kQueryBlock);
  const int64_t floats = kQueryBlock * dim;
  const int64_t num_states = num_heads * num_blocks;
  float* queries = thread_floats(Buffer::kQueries, num_states * floats);
  float* sums = thread_floats(Buffer::kOutputs, 2 * num_states * floats + dim);
  float* mean = sums + 2 * num_states * floats;
  std::fill(sums, mean + dim, 0.0f);
  thread_local std::vector<BlockState> states;
  states.resize(static_cast<size_t>(num_states));
  for (int64_t i = 0; i < num_states; ++i) {
    BlockState& s = states[static_cast<size_t>(i)];
    s.head = head + static_cast<int32_t>(i / num_blocks);
    s.first = first + i % num_blocks * kQueryBlock;
    s.block = std::min(kQueryBlock, num_queries - s.first);
    s.stats.top_logit.fill(-kInf);
    s.stats.rest.fill(0.0f);
    s.stats.top.fill(-1);
    s.acc = with_values ? sums + 2 * i * floats : nullptr;
    s.top_value = with_values ? s.acc + floats : nullptr;
    load_queries(item.queries, shape, args.cache, s.head, s.first, s.block, kQueryBlock, shape.scale,
                 queries + i * floats);
  }
  const Tensor& kept = item.out.logits;
  const int64_t kept_rows = kept ? kept.rows / shape.num_heads : 0;
  const int32_t last_position =
      item.queries.positions[static_cast<size_t>(states.back().first + states.back().block - 1)];
  std::array<int32_t, kTileRows> positions;
  for (int64_t begin = 0; begin < rows.num_rows; begin += kTileRows) {
    const int64_t count = std::min(kTileRows, rows.num_rows - begin);
    rows.load_positions(begin, count, positions.data());
    const bool is_seen = positions[0] <= last_position;
    if (!is_seen && !with_values) break;
    if (is_seen) rows.load_keys(begin, count, keys);
    if (with_values) {
      rows.load_values(begin, count, values);
      args.kernels.add_rows(values, count, dim, mean);
    }
    for (int64_t i = 0; i < num_states; ++i) {
      // The next tile is on its way while this one is worked on.
      if (i < 2) rows.prefetch(begin + kTileRows, kTileRows, /*values=*/i == 1);
      BlockState& s = states[static_cast<size_t>(i)];
      float* logits = kept ? kept.f32(s.head * kept_rows + begin) + s.first : weights;
      const int64_t stride = kept ? kept.stride : kQueryBlock;
      if (is_seen) {
        tile_logits(args, keys, queries + i * floats, positions.data(),
                    item.queries.positions.data() + s.first, s.block, count, kQueryBlock, logits, stride);
        add_tile(args.kernels, s, logits, stride, begin, count, values, dim, weights);
      } else if (kept) {
        for (int64_t j = 0; j < count; ++j) std::fill_n(logits + j * stride, kQueryBlock, -kInf);
      }
    }
  }
  if (with_values) {
    for (int64_t d = 0; d < dim; ++d) mean[d] /= static_cast<float>(std::max<int64_t>(1, rows.num_rows));
    if (first == 0 && head % group == 0) std::copy_n(mean, dim, item.out.v_mean.f32(kv_head));
  }
  for (BlockState& state : states) finish_block(args, item, state, mean);
}

// kIndicatorAfter: attention of rows [chunk] over the queries, smoothed; ratio a/(1-a) and the chunk's part of o.
void smooth_attention(const ObserveRun& args, const ObserveItem& item, int32_t head, int64_t chunk) {
  const AttentionShape& shape = args.shape;
  const int64_t dim = shape.head_dim;
  const int32_t kv_head = head / (shape.num_heads / shape.num_kv_heads);
  const auto num_queries = static_cast<int64_t>(item.queries.positions.size());
  const int64_t padded = padded_queries(num_queries);
  const HeadRows rows(item.rows, shape, args.cache, kv_head);
  const int64_t scored = std::max<int64_t>(0, rows.num_rows - item.window_rows);
  const int64_t chunk_end = std::min(scored, (chunk + 1) * Observation::kRowChunk);
  const Observation& out = item.out;
  float* partial = out.partial.f32(chunk * shape.num_heads + head);
  std::fill(partial, partial + dim, 0.0f);
  if (chunk * Observation::kRowChunk >= scored) return;

  float* keys = thread_floats(Buffer::kKeys, kTileRows * dim);
  float* values = thread_floats(Buffer::kValues, kTileRows * dim);
  float* queries = thread_floats(Buffer::kQueries, dim * padded);
  float* logits = thread_floats(Buffer::kLogits, kTileRows * padded);
  load_queries(item.queries, shape, args.cache, head, 0, num_queries, padded, shape.scale, queries);
  const float* lse = out.lse.f32(head);
  const float* rest = out.rest.f32(head);
  const auto* top = static_cast<const int32_t*>(out.top.row(head));
  std::array<int32_t, kTileRows> positions;
  std::array<float, kTileRows> attention;
  for (int64_t begin = chunk * Observation::kRowChunk; begin < chunk_end; begin += kTileRows) {
    const int64_t count = std::min(kTileRows, chunk_end - begin);
    rows.load_positions(begin, count, positions.data());
    rows.load_keys(begin, count, keys);
    rows.load_values(begin, count, values);
    tile_logits(args, keys, queries, positions.data(), item.queries.positions.data(), num_queries, count,
                padded, logits, padded);
    args.kernels.exp_columns(logits, padded, nullptr, count, padded, lse, logits);
    for (int64_t j = 0; j < count; ++j) {
      float a = 0.0f, complement = 0.0f;  // smoothed A and 1 - A
      int64_t seen = 0;
      for (int64_t t = 0; t < num_queries; ++t) {
        if (lse[t] == kInf && !(top[t] >= 0)) continue;  // sees nothing
        const bool is_top = top[t] == begin + j && rest[t] < 1.0f;
        const float now = is_top ? 1.0f / (1.0f + rest[t]) : logits[j * padded + t];
        const float without = is_top ? rest[t] / (1.0f + rest[t]) : 1.0f - now;
        if (args.spec.reduce == QueryReduce::kEma) {
          const float alpha = seen == 0 ? 1.0f : args.spec.alpha;
          a = alpha * now + (1.0f - alpha) * a;
          complement = alpha * without + (1.0f - alpha) * complement;
        } else {
          a += now;
          complement += without;
        }
        ++seen;
      }
      if (args.spec.reduce != QueryReduce::kEma && seen > 0) {
        a /= static_cast<float>(seen);
        complement /= static_cast<float>(seen);
      }
      attention[static_cast<size_t>(j)] = a;
      out.ratio.f32(head)[begin + j] = a == 0.0f ? 0.0f : a / complement;
    }
    args.kernels.product(attention.data(), kTileRows, 1, values, dim, 1, dim, count, partial, dim, true);
  }
}

// kIndicatorAfter: the output of a head from its chunks, in rising order.
void merge_outputs(const ObserveRun& args, const ObserveItem& item, int32_t head, int64_t num_chunks) {
  const int64_t dim = args.shape.head_dim;
  float* o = thread_floats(Buffer::kOutputs, dim * kQueryBlock);  // column 0
  std::fill(o, o + dim * kQueryBlock, 0.0f);
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
    const float* partial = item.out.partial.f32(chunk * args.shape.num_heads + head);
    for (int64_t d = 0; d < dim; ++d) o[d * kQueryBlock] += partial[d];
  }
  const float* mean = item.out.v_mean.f32(head / (args.shape.num_heads / args.shape.num_kv_heads));
  for (int64_t d = 0; d < dim; ++d) o[d * kQueryBlock] -= mean[d];
  project_columns(args, item, head, o, 1, 0, item.out.p);
}

}  // namespace

void observe(const ObserveArgs& given, const TileKernels& kernels, ThreadPool& pool) {
  const ObserveRun args{given, kernels};
  const int32_t num_heads = args.shape.num_heads, num_kv_heads = args.shape.num_kv_heads;
  const int32_t group = num_heads / num_kv_heads;
  const auto num_items = static_cast<int64_t>(args.items.size());
  if (num_items == 0) return;
  int64_t max_queries = 0, max_rows = 0, num_scored = 0;  // KV heads
  bool has_drift = false;
  for (const ObserveItem& item : args.items) {
    max_queries = std::max(max_queries, static_cast<int64_t>(item.queries.positions.size()));
    has_drift |= item.drift_rows != nullptr;
    for (int32_t h = 0; h < num_kv_heads; ++h) {
      max_rows = std::max<int64_t>(max_rows, item.rows.num_rows(h));
      num_scored += needs_scores(item.rows, item.keep, h);
    }
  }
  // unit -> (item, head, x), of the heads whose scores decide something; longer ones first
  const std::vector<HeadUnit>& order = heads_by_length(args.items, num_kv_heads);
  const auto for_heads = [&](int32_t per_kv_head, int64_t per_head, const auto& fn) {
    pool.parallel_for(num_items * num_kv_heads * per_kv_head * per_head, [&](int64_t unit, int) {
      const HeadUnit& at = order[static_cast<size_t>(unit / (per_kv_head * per_head))];
      const ObserveItem& item = args.items[static_cast<size_t>(at.item)];
      const auto i = static_cast<int32_t>(unit / per_head % per_kv_head);
      const int32_t head = at.kv_head * group + i * (group / per_kv_head);
      if (needs_scores(item.rows, item.keep, at.kv_head)) fn(item, head, unit % per_head);
    });
  };
  if (args.spec.kind == ScoreKind::kIndicatorAfter) {
    for_heads(1, 1,
              [&](const ObserveItem& item, int32_t head, int64_t) { mean_values(args, item, head / group); });
  }
  // Whole groups and several blocks of queries, where that leaves enough units for the threads: the rows of their KV head
  // are then loaded once.
  constexpr int64_t kMostBlocks = 2;
  const int64_t blocks = padded_queries(max_queries) / kQueryBlock, threads = pool.num_threads();
  const bool by_group = num_scored * blocks >= 2 * threads;
  const int64_t unit_blocks = std::min(blocks, num_scored >= 3 * threads ? kMostBlocks : 1);
  const int64_t head_units = (blocks + unit_blocks - 1) / unit_blocks;
  for_heads(by_group ? 1 : group, head_units, [&](const ObserveItem& item, int32_t head, int64_t unit) {
    const auto item_blocks =
        padded_queries(static_cast<int64_t>(item.queries.positions.size())) / kQueryBlock;
    const int64_t first = unit * unit_blocks, count = std::min(unit_blocks, item_blocks - first);
    if (count > 0) observe_blocks(args, item, head, by_group ? group : 1, first * kQueryBlock, count);
  });
  if (args.spec.kind == ScoreKind::kIndicatorAfter) {
    const int64_t num_chunks = (max_rows + Observation::kRowChunk - 1) / Observation::kRowChunk;
    const auto chunks_of = [&](const ObserveItem& item, int32_t head) {
      const int64_t n = item.rows.num_rows(head / group);
      return (n + Observation::kRowChunk - 1) / Observation::kRowChunk;
    };
    for_heads(group, num_chunks, [&](const ObserveItem& item, int32_t head, int64_t chunk) {
      if (chunk < chunks_of(item, head)) smooth_attention(args, item, head, chunk);
    });
    for_heads(group, 1, [&](const ObserveItem& item, int32_t head, int64_t) {
      merge_outputs(args, item, head, chunks_of(item, head));
    });
  }
  if (!has_drift) return;
  for_heads(group, max_queries, [&](const ObserveItem& item, int32_t head, int64_t query) {
    if (item.drift_rows && query < static_cast<int64_t>(item.queries.positions.size())) {
      mean_top_index(args, kernels, item, head, query);
    }
  });
}

}  // namespace restkv::cpu
