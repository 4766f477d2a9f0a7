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

#include "kernels/cpu/eviction/eviction_ops.h"
#include "kernels/cpu/eviction/row_tile.h"
#include "kernels/cpu/eviction/score_key.h"
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
// far from 0.
void mean_values(const ObserveRun& args, const ObserveItem& item, int32_t head) {
  const int64_t dim = args.shape.head_dim;
  const HeadRows rows(item.rows, args.shape, args.cache, head);
  float* v = thread_floats(Buffer::kValues, kTileRows * dim);
  float* mean = item.out.v_mean.f32(head);
  std::fill(mean, mean + dim, 0.0f);
  for (int64_t begin = 0; begin < rows.num_rows; begin += kTileRows) {
    const int64_t count = std::min(kTileRows, rows.num_rows - begin);
    rows.load_values(begin, count, v);
    for (int64_t j = 0; j < count; ++j) {
      for (int64_t d = 0; d < dim; ++d) mean[d] += v[j * dim + d];
    }
  }
  for (int64_t d = 0; d < dim; ++d) mean[d] /= static_cast<float>(std::max<int64_t>(1, rows.num_rows));
}

// logits [count, stride] of a tile, capped and masked.
void tile_logits(const ObserveRun& args, const float* keys, const float* queries,
                 const int32_t* row_positions, const int32_t* query_positions, int64_t num_queries,
                 int64_t count, int64_t stride, float* logits) {
  const int64_t dim = args.shape.head_dim;
  args.kernels.product(keys, dim, 1, queries, stride, count, stride, dim, logits, stride, false);
  if (args.shape.softcap > 0.0f) args.kernels.softcap(logits, count * stride, args.shape.softcap);
  mask_logits(logits, count, stride, row_positions, query_positions, num_queries, args.shape.window);
}

// One tile joins the statistics of a block of queries; acc and top_value [kQueryBlock, D], null without values.
void add_tile(const TileKernels& kernels, QueryStats& stats, float* logits, int64_t begin, int64_t count,
              const float* values, int64_t dim, float* acc, float* top_value) {
  std::array<float, kQueryBlock> best = stats.top_logit;
  std::array<float, kQueryBlock> best_row;  // of the tile, -1: none is above the top so far
  best_row.fill(-1.0f);
  kernels.column_max(logits, count, best.data(), best_row.data());
  std::array<float, kQueryBlock> shift;
  for (size_t t = 0; t < kQueryBlock; ++t) {
    const auto row = static_cast<int32_t>(best_row[t]);
    if (row >= 0) {
      if (stats.top[t] >= 0) {
        const float factor = std::exp(stats.top_logit[t] - best[t]);
        stats.rest[t] = stats.rest[t] * factor + factor;
        const int64_t first = static_cast<int64_t>(t) * dim;
        if (values) kernels.join_scaled(top_value + first, dim, factor, acc + first);
      }
      stats.top_logit[t] = best[t];
      stats.top[t] = static_cast<int32_t>(begin) + row;
      if (values) std::copy_n(values + row * dim, dim, top_value + static_cast<int64_t>(t) * dim);
    }
    shift[t] = stats.top[t] >= 0 ? stats.top_logit[t] : 0.0f;
  }
  kernels.exp_columns(logits, count, kQueryBlock, shift.data());
  for (size_t t = 0; t < kQueryBlock; ++t) {
    if (best_row[t] >= 0)
      logits[static_cast<int64_t>(best_row[t]) * kQueryBlock + static_cast<int64_t>(t)] = 0.0f;
  }
  kernels.column_sums(logits, count, stats.rest.data());
  if (values) kernels.product(logits, 1, kQueryBlock, values, dim, kQueryBlock, dim, count, acc, dim, true);
}

// R_g of each row of x [rows, D], in a buffer of this thread; x itself where there is no projection.
const float* project(const ObserveRun& args, const ObserveItem& item, int32_t head, const float* x,
                     int64_t rows) {
  if (!item.projection) return x;
  const int64_t dim = args.shape.head_dim;
  float* y = thread_floats(Buffer::kProjected, kQueryBlock * dim);
  args.kernels.triangle_product(x, dim, item.projection.f32(head * dim), item.projection.stride, rows, dim, y,
                                dim);
  return y;
}

// x [rows, D] - v_mean -> R_g of it, as columns [first, first + rows) of out [D, stride].
void project_columns(const ObserveRun& args, const ObserveItem& item, int32_t head, float* x, int64_t rows,
                     const float* mean, int64_t first, const Tensor& out) {
  const int64_t dim = args.shape.head_dim;
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t d = 0; d < dim; ++d) x[t * dim + d] -= mean[d];
  }
  const float* projected = project(args, item, head, x, rows);
  for (int64_t e = 0; e < dim; ++e) {
    float* row = out.f32(head * dim + e) + first;
    for (int64_t t = 0; t < rows; ++t) row[t] = projected[t * dim + e];
    std::fill(row + rows, row + kQueryBlock, 0.0f);  // padding: finite, its weights are 0
  }
}

// ||R_g x|| of each row of x [rows, D].
void project_norms(const ObserveRun& args, const ObserveItem& item, int32_t head, const float* x,
                   int64_t rows, float* out) {
  const int64_t dim = args.shape.head_dim;
  const float* projected = project(args, item, head, x, rows);
  for (int64_t t = 0; t < rows; ++t) {
    float sum = 0.0f;
    for (int64_t e = 0; e < dim; ++e) sum += projected[t * dim + e] * projected[t * dim + e];
    out[t] = std::sqrt(sum);
  }
}

// What a block of queries of one head leaves; acc and top_value [kQueryBlock, D], acc null without values.
void finish_block(const ObserveRun& args, const ObserveItem& item, int32_t head, int64_t first, int64_t block,
                  const QueryStats& stats, float* acc, float* top_value) {
  const int64_t dim = args.shape.head_dim;
  const int32_t kv_head = head / (args.shape.num_heads / args.shape.num_kv_heads);
  const Observation& out = item.out;
  for (int64_t t = 0; t < block; ++t) {
    const auto i = static_cast<size_t>(t);
    // A query that sees nothing has top -1; with lse inf all its weights are 0. NaN logits leave NaN in rest.
    const bool is_blind = stats.top[i] < 0 && !(stats.rest[i] != stats.rest[i]);
    out.lse.f32(head)[first + t] = is_blind ? kInf : stats.top_logit[i] + std::log1p(stats.rest[i]);
    static_cast<int32_t*>(out.top.row(head))[first + t] = stats.top[i];
    out.rest.f32(head)[first + t] = stats.rest[i];
  }
  for (int64_t t = first + block; t < first + kQueryBlock; ++t) out.lse.f32(head)[t] = kInf;  // padding
  if (!acc) return;

  for (int64_t t = 0; t < block; ++t) {  // acc -> mean of the others, top_value -> full output
    const float rest = stats.rest[static_cast<size_t>(t)];
    for (int64_t d = 0; d < dim; ++d) {
      float& a = acc[t * dim + d];
      float& o = top_value[t * dim + d];
      o = (o + a) / (1.0f + rest);
      a = rest > 0.0f ? a / rest : 0.0f;
    }
  }
  if (args.spec.normalize) project_norms(args, item, head, top_value, block, out.norm.f32(head) + first);
  project_columns(args, item, head, top_value, block, out.v_mean.f32(kv_head), first, out.p);
  project_columns(args, item, head, acc, block, out.v_mean.f32(kv_head), first, out.p_rest);
}

// Statistics of queries [first, first + kQueryBlock) of query heads [head, head + num_heads) of one KV head, whose rows are
// loaded once for all of them; for kIndicatorQuery their outputs too.
void observe_block(const ObserveRun& args, const ObserveItem& item, int32_t head, int32_t num_heads,
                   int64_t first) {
  const AttentionShape& shape = args.shape;
  const int64_t dim = shape.head_dim;
  const int32_t kv_head = head / (shape.num_heads / shape.num_kv_heads);
  const bool with_values = args.spec.kind == ScoreKind::kIndicatorQuery;
  const auto num_queries = static_cast<int64_t>(item.queries.positions.size());
  const int64_t block = std::min(kQueryBlock, num_queries - first);
  const HeadRows rows(item.rows, shape, args.cache, kv_head);
  float* keys = thread_floats(Buffer::kKeys, kTileRows * dim);
  float* values = with_values ? thread_floats(Buffer::kValues, kTileRows * dim) : nullptr;
  float* logits = thread_floats(Buffer::kLogits, kTileRows * kQueryBlock);
  const int64_t head_floats = kQueryBlock * dim;
  float* queries = thread_floats(Buffer::kQueries, num_heads * head_floats);
  float* acc = thread_floats(Buffer::kOutputs, 2 * num_heads * head_floats);
  float* top_value = acc + num_heads * head_floats;
  std::fill(acc, acc + 2 * num_heads * head_floats, 0.0f);
  thread_local std::vector<QueryStats> stats;
  stats.resize(static_cast<size_t>(num_heads));
  for (int32_t h = 0; h < num_heads; ++h) {
    load_queries(item.queries, shape, args.cache, head + h, first, block, kQueryBlock, shape.scale,
                 queries + h * head_floats);
    QueryStats& s = stats[static_cast<size_t>(h)];
    s.top_logit.fill(-kInf);
    s.rest.fill(0.0f);
    s.top.fill(-1);
  }
  std::array<int32_t, kTileRows> positions;
  for (int64_t begin = 0; begin < rows.num_rows; begin += kTileRows) {
    const int64_t count = std::min(kTileRows, rows.num_rows - begin);
    rows.load_positions(begin, count, positions.data());
    if (positions[0] > item.queries.positions[static_cast<size_t>(first + block - 1)]) break;  // seen by none
    rows.load_keys(begin, count, keys);
    if (with_values) rows.load_values(begin, count, values);
    for (int32_t h = 0; h < num_heads; ++h) {
      tile_logits(args, keys, queries + h * head_floats, positions.data(),
                  item.queries.positions.data() + first, block, count, kQueryBlock, logits);
      add_tile(args.kernels, stats[static_cast<size_t>(h)], logits, begin, count, values, dim,
               acc + h * head_floats, top_value + h * head_floats);
    }
  }
  for (int32_t h = 0; h < num_heads; ++h)
    finish_block(args, item, head + h, first, block, stats[static_cast<size_t>(h)],
                 with_values ? acc + h * head_floats : nullptr, top_value + h * head_floats);
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
                padded, logits);
    args.kernels.exp_columns(logits, count, padded, lse);
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
  float* o = thread_floats(Buffer::kOutputs, dim);
  std::fill(o, o + dim, 0.0f);
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
    const float* partial = item.out.partial.f32(chunk * args.shape.num_heads + head);
    for (int64_t d = 0; d < dim; ++d) o[d] += partial[d];
  }
  const int32_t kv_head = head / (args.shape.num_heads / args.shape.num_kv_heads);
  project_columns(args, item, head, o, 1, item.out.v_mean.f32(kv_head), 0, item.out.p);
}

// The smallest of the `wanted` largest values, by three counting passes over 11, 11 and 10 bits; and how many of the values
// equal to it belong to them.
struct Threshold {
  uint32_t value = 0;
  int64_t num_equal = 0;
};
Threshold find_threshold(const std::vector<uint32_t>& values, int64_t wanted) {
  Threshold threshold{.value = 0, .num_equal = wanted};
  constexpr std::array<int, 3> kShifts = {21, 10, 0};
  uint32_t mask = 0;
  for (const int shift : kShifts) {
    std::array<int32_t, 2048> counts{};
    for (const uint32_t v : values) {
      if ((v & mask) == threshold.value) ++counts[(v >> shift) & (shift == 0 ? 1023u : 2047u)];
    }
    size_t bin = counts.size() - 1;
    while (counts[bin] < threshold.num_equal && bin > 0) threshold.num_equal -= counts[bin--];
    threshold.value |= static_cast<uint32_t>(bin) << shift;
    mask |= (shift == 0 ? 1023u : 2047u) << shift;
  }
  return threshold;
}

// Mean index of the rows with the largest logits of one query: a threshold and a sum, no sort. Equal logits: newer rows.
void mean_top_index(const ObserveRun& args, const ObserveItem& item, int32_t head, int64_t query) {
  const AttentionShape& shape = args.shape;
  const int64_t dim = shape.head_dim;
  const int32_t kv_head = head / (shape.num_heads / shape.num_kv_heads);
  const HeadRows rows(item.rows, shape, args.cache, kv_head);
  const int64_t n = rows.num_rows;
  const int64_t wanted = std::min<int64_t>(item.drift_rows[kv_head], n);
  float* keys = thread_floats(Buffer::kKeys, kTileRows * dim);
  float* q = thread_floats(Buffer::kQueries, dim);
  load_queries(item.queries, shape, args.cache, head, query, 1, 1, shape.scale, q);
  const int32_t query_position = item.queries.positions[static_cast<size_t>(query)];
  thread_local std::vector<uint32_t> ordered;  // [n]
  ordered.clear();
  std::array<float, kTileRows> logits;
  std::array<int32_t, kTileRows> positions;
  for (int64_t begin = 0; begin < n; begin += kTileRows) {
    const int64_t count = std::min(kTileRows, n - begin);
    rows.load_positions(begin, count, positions.data());
    rows.load_keys(begin, count, keys);
    args.kernels.dot_rows(keys, dim, count, q, dim, logits.data());
    if (shape.softcap > 0.0f) args.kernels.softcap(logits.data(), count, shape.softcap);
    mask_logits(logits.data(), count, 1, positions.data(), &query_position, 1, shape.window);
    for (int64_t j = 0; j < count; ++j) ordered.push_back(ordered_bits(logits[static_cast<size_t>(j)]));
  }
  const Threshold threshold = find_threshold(ordered, wanted);
  int64_t equal_left = threshold.num_equal, sum = 0;
  for (int64_t j = n - 1; j >= 0; --j) {
    const uint32_t value = ordered[static_cast<size_t>(j)];
    if (value > threshold.value || (value == threshold.value && equal_left-- > 0)) sum += j;
  }
  item.out.mean_index.f32(head)[query] =
      wanted > 0 ? static_cast<float>(static_cast<double>(sum) / static_cast<double>(wanted)) : 0.0f;
}

}  // namespace

void observe(const ObserveArgs& given, const TileKernels& kernels, ThreadPool& pool) {
  const ObserveRun args{given, kernels};
  const int32_t num_heads = args.shape.num_heads;
  const auto num_items = static_cast<int64_t>(args.items.size());
  int64_t max_queries = 0, max_rows = 0;
  for (const ObserveItem& item : args.items) {
    max_queries = std::max(max_queries, static_cast<int64_t>(item.queries.positions.size()));
    for (int32_t h = 0; h < args.shape.num_kv_heads; ++h) {
      max_rows = std::max<int64_t>(max_rows, item.rows.num_rows(h));
    }
  }
  if (args.spec.kind != ScoreKind::kAttention) {
    pool.parallel_for(num_items * args.shape.num_kv_heads, [&](int64_t unit, int) {
      mean_values(args, args.items[static_cast<size_t>(unit / args.shape.num_kv_heads)],
                  static_cast<int32_t>(unit % args.shape.num_kv_heads));
    });
  }
  // unit -> (item, head, x)
  const auto for_heads = [&](int64_t per_head, const auto& fn) {
    pool.parallel_for(num_items * num_heads * per_head, [&](int64_t unit, int) {
      const ObserveItem& item = args.items[static_cast<size_t>(unit / (num_heads * per_head))];
      fn(item, static_cast<int32_t>(unit / per_head % num_heads), unit % per_head);
    });
  };
  // Whole groups, where that leaves enough units for the threads: the rows of their KV head are then loaded once.
  const int32_t group = num_heads / args.shape.num_kv_heads;
  const int64_t blocks = padded_queries(max_queries) / kQueryBlock;
  const bool by_group = num_items * args.shape.num_kv_heads * blocks >= 2 * pool.num_threads();
  const int32_t unit_heads = by_group ? group : 1;
  for_heads(blocks, [&](const ObserveItem& item, int32_t head, int64_t block) {
    if (head % unit_heads == 0 && block * kQueryBlock < static_cast<int64_t>(item.queries.positions.size()))
      observe_block(args, item, head, unit_heads, block * kQueryBlock);
  });
  if (args.spec.kind == ScoreKind::kIndicatorAfter) {
    const int64_t num_chunks = (max_rows + Observation::kRowChunk - 1) / Observation::kRowChunk;
    const auto chunks_of = [&](const ObserveItem& item, int32_t head) {
      const int64_t n = item.rows.num_rows(head / (num_heads / args.shape.num_kv_heads));
      return (n + Observation::kRowChunk - 1) / Observation::kRowChunk;
    };
    for_heads(num_chunks, [&](const ObserveItem& item, int32_t head, int64_t chunk) {
      if (chunk < chunks_of(item, head)) smooth_attention(args, item, head, chunk);
    });
    for_heads(1, [&](const ObserveItem& item, int32_t head, int64_t) {
      merge_outputs(args, item, head, chunks_of(item, head));
    });
  }
  for_heads(max_queries, [&](const ObserveItem& item, int32_t head, int64_t query) {
    if (item.drift_rows && query < static_cast<int64_t>(item.queries.positions.size())) {
      mean_top_index(args, item, head, query);
    }
  });
}

}  // namespace restkv::cpu
