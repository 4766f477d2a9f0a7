// score: one number for each (KV head, row). For the indicators (restkv.md sections 2, 3 and 5):
//   u_j = R_g (v_j - v_mean), in tiles, never stored;  e_tgj = a/(1-a) * ||p_tg - u_j||^tau
//   a > 1/2 (at most the top row of a query): e = a (1-a)^(tau-1) ||p'_tg - u_j||^tau with p' the output of the other rows
//   s_j = over the group of (over the queries of e_tgj)
// Units are (item, KV head, chunk of rows): rows are independent, nothing is summed across units, so that chunks may be as
// small as the threads need them.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/eviction/eviction_ops.h"
#include "kernels/cpu/eviction/row_tile.h"
#include "kernels/cpu/eviction/tile_kernels.h"

namespace restkv::cpu {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
struct ScoreRun : ScoreArgs {
  const TileKernels& kernels;
};
using TileScores = std::array<float, kTileRows>;

// The larger one; NaN wins, so that it is seen later.
float max_or_nan(float a, float b) { return b > a || b != b ? b : a; }

// Up to kTileRows rows of one KV head, rising, loaded.
struct Tile {
  int64_t count = 0;
  std::array<int64_t, kTileRows> rows;
  std::array<int32_t, kTileRows> positions;
  float* keys = nullptr;    // [count, D]; null: none are needed
  float* values = nullptr;  // [count, D]
  const float* queries =
      nullptr;  // [G, D, padded], scaled; kIndicatorQuery, unless observe has kept the logits
};

// Attention weights [count, stride] of a tile to all queries of one head; `queries` [D, stride] are scaled.
void tile_weights(const ScoreRun& args, const ScoreItem& item, const Tile& tile, const float* queries,
                  int64_t first, int64_t num_queries, int64_t stride, const float* lse, float* weights) {
  const TileKernels& kernels = args.kernels;
  const int64_t dim = args.shape.head_dim;
  kernels.product(tile.keys, dim, 1, queries, stride, tile.count, stride, dim, weights, stride, false);
  if (args.shape.softcap > 0.0f) kernels.softcap(weights, tile.count * stride, args.shape.softcap);
  mask_logits(weights, tile.count, stride, tile.positions.data(), item.queries.positions.data() + first,
              num_queries, args.shape.window);
  kernels.exp_columns(weights, stride, nullptr, tile.count, stride, lse, weights);
}

// The values become v - v_mean [count, D], for all heads of the group.
const float* centre_values(const ScoreRun& args, const ScoreItem& item, const Tile& tile, int32_t kv_head) {
  const int64_t dim = args.shape.head_dim;
  args.kernels.centre_rows(item.observation.v_mean.f32(kv_head), tile.count, dim, tile.values);
  return tile.values;
}

// u [count, D] = R_g (v - v_mean).
const float* project_values(const ScoreRun& args, const ScoreItem& item, const Tile& tile,
                            const float* centred, int32_t head) {
  if (!item.projection) return centred;
  const int64_t dim = args.shape.head_dim;
  float* u = thread_floats(Buffer::kProjected, kTileRows * dim);
  args.kernels.triangle_product(centred, dim, item.projection.f32(head * dim), item.projection.stride,
                                tile.count, dim, u, dim);
  return u;
}

bool is_blind(const Observation& o, int32_t head, int64_t query) {
  return o.lse.f32(head)[query] == kInf && static_cast<const int32_t*>(o.top.row(head))[query] < 0;
}

// e of the top row of query t, which holds more than half of its attention.
float singular_error(const ScoreRun& args, const Observation& o, int32_t head, int64_t query,
                     const float* u) {
  const float rest = o.rest.f32(head)[query];
  if (rest == 0.0f) return kInf;  // the others' mass underflowed: the row is mandatory
  const int64_t dim = args.shape.head_dim;
  float sum = 0.0f;
  for (int64_t e = 0; e < dim; ++e) {
    const float difference = o.p_rest.f32(head * dim + e)[query] - u[e];
    sum += difference * difference;
  }
  const float a = 1.0f / (1.0f + rest);
  if (args.spec.tau == 1.0f) return a * std::sqrt(sum);
  return a * std::pow(rest / (1.0f + rest), args.spec.tau - 1.0f) * std::pow(sum, 0.5f * args.spec.tau);
}

// Over the queries of one head: errors [count, padded] of a tile's rows -> one number each. Errors of blind and padding queries
// are 0.
void reduce_queries(const ScoreRun& args, const float* errors, int64_t rows, const uint8_t* blind,
                    int64_t num_queries, int64_t num_seeing, float* out) {
  const ScoreSpec& spec = args.spec;
  const int64_t padded = padded_queries(num_queries);
  const auto count = static_cast<float>(std::max<int64_t>(1, num_seeing));
  if (spec.reduce == QueryReduce::kRms) {
    args.kernels.row_sums_of_squares(errors, rows, padded, out);
    for (int64_t j = 0; j < rows; ++j) out[j] = std::sqrt(out[j] / count);
    return;
  }
  if (spec.reduce == QueryReduce::kMean) {
    args.kernels.row_sums(errors, rows, padded, out);
    for (int64_t j = 0; j < rows; ++j) out[j] /= count;
    return;
  }
  for (int64_t j = 0; j < rows; ++j) {
    float value = 0.0f;
    bool is_first = true;
    for (int64_t t = 0; t < num_queries; ++t) {
      if (blind[t]) continue;
      const float error = errors[j * padded + t];
      if (spec.reduce == QueryReduce::kMax) {
        value = max_or_nan(value, error);
      } else {
        value = is_first ? error : spec.alpha * error + (1.0f - spec.alpha) * value;
      }
      is_first = false;
    }
    out[j] = value;
  }
}

void join_group(GroupReduce reduce, float e, float& score) {
  switch (reduce) {
    case GroupReduce::kRss: score += e * e; break;
    case GroupReduce::kMax: score = max_or_nan(score, e); break;
    case GroupReduce::kMean: score += e; break;
  }
}

float finish_group(GroupReduce reduce, float score, int32_t group) {
  if (reduce == GroupReduce::kRss) return std::sqrt(score);
  return reduce == GroupReduce::kMean ? score / static_cast<float>(group) : score;
}

// kIndicatorQuery.
void score_per_query(const ScoreRun& args, const ScoreItem& item, const Tile& tile, int32_t kv_head,
                     TileScores& scores) {
  const int64_t dim = args.shape.head_dim;
  const int32_t group = args.shape.num_heads / args.shape.num_kv_heads;
  const Observation& o = item.observation;
  const auto num_queries = static_cast<int64_t>(item.queries.positions.size());
  const int64_t padded = padded_queries(num_queries);
  float* errors = thread_floats(Buffer::kLogits, kTileRows * padded);
  float* distances = thread_floats(Buffer::kDistances, kTileRows * padded);
  thread_local std::vector<uint8_t> blind;
  blind.resize(static_cast<size_t>(num_queries));
  const float* centred = centre_values(args, item, tile, kv_head);
  for (int32_t g = 0; g < group; ++g) {
    const int32_t head = kv_head * group + g;
    if (o.logits) {
      args.kernels.exp_columns(o.logits.f32(head * (o.logits.rows / args.shape.num_heads)), o.logits.stride,
                               tile.rows.data(), tile.count, padded, o.lse.f32(head), errors);
    } else {
      tile_weights(args, item, tile, tile.queries + g * dim * padded, 0, num_queries, padded, o.lse.f32(head),
                   errors);
    }
    const float* u = project_values(args, item, tile, centred, head);
    args.kernels.distance(o.p.f32(head * dim), o.p.stride, u, dim, tile.count, padded, dim, distances,
                          padded);
    if (args.spec.tau != 1.0f) {
      for (int64_t i = 0; i < tile.count * padded; ++i) distances[i] = std::pow(distances[i], args.spec.tau);
    }
    args.kernels.indicator(errors, distances, tile.count * padded);
    int64_t num_seeing = 0;
    for (int64_t t = 0; t < num_queries; ++t) {
      blind[static_cast<size_t>(t)] = is_blind(o, head, t);
      num_seeing += !blind[static_cast<size_t>(t)];
      if (!(o.rest.f32(head)[t] < 1.0f)) continue;
      const int64_t top = static_cast<const int32_t*>(o.top.row(head))[t];
      const auto* end = tile.rows.data() + tile.count;
      const auto* found = std::lower_bound(tile.rows.data(), end, top);
      if (found != end && *found == top) {
        const int64_t j = found - tile.rows.data();
        errors[j * padded + t] = singular_error(args, o, head, t, u + j * dim);
      }
    }
    if (args.spec.normalize) {
      const float* norm = o.norm.f32(head);
      for (int64_t j = 0; j < tile.count; ++j) {
        for (int64_t t = 0; t < num_queries; ++t) {
          if (!blind[static_cast<size_t>(t)]) errors[j * padded + t] /= norm[t];
        }
      }
    }
    TileScores reduced;
    reduce_queries(args, errors, tile.count, blind.data(), num_queries, num_seeing, reduced.data());
    for (int64_t j = 0; j < tile.count; ++j) {
      join_group(args.spec.group, reduced[static_cast<size_t>(j)], scores[static_cast<size_t>(j)]);
    }
  }
  for (int64_t j = 0; j < tile.count; ++j) {
    float& s = scores[static_cast<size_t>(j)];
    s = finish_group(args.spec.group, s, group);
  }
}

// kIndicatorAfter: rows [0, scored) by the smoothed attention, the window's rows 0.
void score_smoothed(const ScoreRun& args, const ScoreItem& item, const Tile& tile, int32_t kv_head,
                    int64_t scored, TileScores& scores) {
  const int64_t dim = args.shape.head_dim;
  const int32_t group = args.shape.num_heads / args.shape.num_kv_heads;
  const float* centred = centre_values(args, item, tile, kv_head);
  for (int32_t g = 0; g < group; ++g) {
    const int32_t head = kv_head * group + g;
    const float* u = project_values(args, item, tile, centred, head);
    for (int64_t j = 0; j < tile.count && tile.rows[static_cast<size_t>(j)] < scored; ++j) {
      float sum = 0.0f;
      for (int64_t e = 0; e < dim; ++e) {
        const float difference = item.observation.p.f32(head * dim + e)[0] - u[j * dim + e];
        sum += difference * difference;
      }
      const float norm = args.spec.tau == 1.0f ? std::sqrt(sum) : std::pow(sum, 0.5f * args.spec.tau);
      join_group(args.spec.group, item.observation.ratio.f32(head)[tile.rows[static_cast<size_t>(j)]] * norm,
                 scores[static_cast<size_t>(j)]);
    }
  }
  for (int64_t j = 0; j < tile.count; ++j) {
    float& s = scores[static_cast<size_t>(j)];
    s = finish_group(args.spec.group, s, group);
  }
}

// kAttention: queries in rising order and heads within a query, one running sum: the result does not depend on where h2o's
// pass was cut into chunks of queries.
void sum_attention(const ScoreRun& args, const ScoreItem& item, const Tile& tile, int32_t kv_head,
                   TileScores& scores) {
  constexpr int64_t kBlock = 16;
  const int64_t dim = args.shape.head_dim;
  const int32_t group = args.shape.num_heads / args.shape.num_kv_heads;
  const float share = 1.0f / static_cast<float>(group);
  const auto num_queries = static_cast<int64_t>(item.queries.positions.size());
  float* queries = thread_floats(Buffer::kQueries, dim * kBlock);
  float* weights = thread_floats(Buffer::kLogits, group * kTileRows * kBlock);
  for (int64_t first = 0; first < num_queries; first += kBlock) {
    const int64_t block = std::min(kBlock, num_queries - first);
    for (int32_t g = 0; g < group; ++g) {
      const int32_t head = kv_head * group + g;
      load_queries(item.queries, args.shape, args.cache, head, first, block, kBlock, args.shape.scale,
                   queries);
      tile_weights(args, item, tile, queries, first, block, kBlock, item.observation.lse.f32(head) + first,
                   weights + g * kTileRows * kBlock);
    }
    for (int64_t j = 0; j < tile.count; ++j) {
      float sum = scores[static_cast<size_t>(j)];
      for (int64_t t = 0; t < block; ++t) {
        for (int32_t g = 0; g < group; ++g) sum += share * weights[(g * kTileRows + j) * kBlock + t];
      }
      scores[static_cast<size_t>(j)] = sum;
    }
  }
}

// splitmix64's finaliser: a hash of (layer, head, position) as a number in [0, 1).
float hash_score(int32_t layer, int32_t head, int32_t position) {
  uint64_t x = (uint64_t{static_cast<uint32_t>(layer)} << 48) ^
               (uint64_t{static_cast<uint32_t>(head)} << 32) ^ static_cast<uint32_t>(position);
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  x ^= x >> 31;
  return static_cast<float>(x >> 40) * 0x1p-24f;
}

// lacache: the rows between the first and the last are cut into equal ranges, range r belongs to the layers
// [r * span, (r + 1) * span), the last one to the last `span` layers. A layer's own range first, then newer rows.
float ladder_score(const ScoreSpec& spec, const ScoreItem& item, int64_t row, int64_t num_rows) {
  const int64_t middle = num_rows - item.head_rows - item.window_rows;
  const int64_t index = row - item.head_rows;
  if (index < 0 || index >= middle) return static_cast<float>(2 * num_rows);
  const int64_t span = std::max(1, std::min(spec.ladder_span, spec.num_layers));
  const int64_t ranges = (spec.num_layers + span - 1) / span;
  const int64_t range = index * ranges / middle;
  const int64_t first = std::min(range * span, spec.num_layers - span);
  const bool is_own = item.layer >= first && item.layer < first + span;
  return static_cast<float>(is_own ? num_rows + index : index);
}

void load_tile(const HeadRows& rows, int64_t dim, Tile& tile) {
  for (int64_t begin = 0, end = 0; begin < tile.count; begin = end) {  // runs of neighbours
    const int64_t row = tile.rows[static_cast<size_t>(begin)];
    end = begin + 1;
    while (end < tile.count && tile.rows[static_cast<size_t>(end)] == row + end - begin) ++end;
    if (tile.keys) rows.load_keys(row, end - begin, tile.keys + begin * dim);
    if (tile.values) rows.load_values(row, end - begin, tile.values + begin * dim);
  }
}

void score_tile(const ScoreRun& args, const ScoreItem& item, const HeadRows& rows, int32_t kv_head,
                Tile& tile) {
  const ScoreKind kind = args.spec.kind;
  float* out = item.out.f32(kv_head);
  load_tile(rows, args.shape.head_dim, tile);
  TileScores scores;
  scores.fill(0.0f);
  for (int64_t j = 0; j < tile.count; ++j) {
    const int64_t row = tile.rows[static_cast<size_t>(j)];
    const int32_t position = tile.positions[static_cast<size_t>(j)];
    float& s = scores[static_cast<size_t>(j)];
    if (kind == ScoreKind::kRecency) s = static_cast<float>(position);
    if (kind == ScoreKind::kHash) s = hash_score(item.layer, kv_head, position);
    if (kind == ScoreKind::kLadder) s = ladder_score(args.spec, item, row, rows.num_rows);
    if (kind == ScoreKind::kAttention && item.accumulate) s = out[row];
    if (kind == ScoreKind::kAttention && item.sums && row < item.sums->len[kv_head]) {
      s = *sum_at(*item.sums, args.cache, kv_head, row);
    }
  }
  if (kind == ScoreKind::kAttention) sum_attention(args, item, tile, kv_head, scores);
  if (kind == ScoreKind::kIndicatorQuery) score_per_query(args, item, tile, kv_head, scores);
  if (kind == ScoreKind::kIndicatorAfter) {
    score_smoothed(args, item, tile, kv_head, std::max<int64_t>(0, rows.num_rows - item.window_rows), scores);
  }
  for (int64_t j = 0; j < tile.count; ++j)
    out[tile.rows[static_cast<size_t>(j)]] = scores[static_cast<size_t>(j)];
  tile.count = 0;
}

// Rows [first, end) of one KV head.
void score_rows(const ScoreRun& args, const ScoreItem& item, int32_t kv_head, int64_t first, int64_t end) {
  const AttentionShape& shape = args.shape;
  const int64_t dim = shape.head_dim;
  const ScoreKind kind = args.spec.kind;
  const bool is_indicator = kind == ScoreKind::kIndicatorQuery || kind == ScoreKind::kIndicatorAfter;
  const HeadRows rows(item.rows, shape, args.cache, kv_head);
  Tile tile;
  const bool has_logits = kind == ScoreKind::kIndicatorQuery && item.observation.logits;
  if (kind == ScoreKind::kAttention || (kind == ScoreKind::kIndicatorQuery && !has_logits))
    tile.keys = thread_floats(Buffer::kKeys, kTileRows * dim);
  if (is_indicator) tile.values = thread_floats(Buffer::kValues, kTileRows * dim);
  if (kind == ScoreKind::kIndicatorQuery && !has_logits) {
    const int32_t group = shape.num_heads / shape.num_kv_heads;
    const auto num_queries = static_cast<int64_t>(item.queries.positions.size());
    const int64_t padded = padded_queries(num_queries);
    float* queries = thread_floats(Buffer::kQueries, group * dim * padded);
    for (int32_t g = 0; g < group; ++g) {
      load_queries(item.queries, shape, args.cache, kv_head * group + g, 0, num_queries, padded, shape.scale,
                   queries + g * dim * padded);
    }
    tile.queries = queries;
  }
  RowPlaces places(item.protect, kv_head, rows.num_rows);
  std::array<int32_t, kTileRows> positions;
  for (int64_t begin = first; begin < end; begin += kTileRows) {
    const int64_t count = std::min(kTileRows, end - begin);
    rows.load_positions(begin, count, positions.data());
    for (int64_t j = 0; j < count; ++j) {
      const int32_t position = positions[static_cast<size_t>(j)];
      if (is_indicator && places.of(begin + j, position) != RowPlace::kScored) {
        item.out.f32(kv_head)[begin + j] = 0.0f;
        continue;
      }
      tile.rows[static_cast<size_t>(tile.count)] = begin + j;
      tile.positions[static_cast<size_t>(tile.count)] = position;
      if (++tile.count == kTileRows) score_tile(args, item, rows, kv_head, tile);
    }
  }
  if (tile.count > 0) score_tile(args, item, rows, kv_head, tile);
}

}  // namespace

void score(const ScoreArgs& given, const TileKernels& kernels, ThreadPool& pool) {
  const ScoreRun args{given, kernels};
  const int32_t num_kv_heads = args.shape.num_kv_heads;
  int64_t max_rows = 0, num_scored = 0;  // heads
  for (const ScoreItem& item : args.items) {
    for (int32_t h = 0; h < num_kv_heads; ++h) {
      max_rows = std::max<int64_t>(max_rows, item.rows.num_rows(h));
      num_scored += needs_scores(item.rows, item.keep, h);
    }
  }
  // Units differ by how many of their rows are scored, and a unit may load the queries again: a few for each thread.
  constexpr int64_t kUnitsOfThread = 8;
  const auto chunks_of = [](int64_t n, int64_t rows) { return (n + rows - 1) / rows; };
  int64_t chunk_rows = 4 * kTileRows;
  while (chunk_rows > kTileRows &&
         num_scored * chunks_of(max_rows, chunk_rows) < kUnitsOfThread * pool.num_threads())
    chunk_rows /= 2;
  const int64_t chunks = chunks_of(max_rows, chunk_rows);
  const auto heads = static_cast<int64_t>(args.items.size()) * num_kv_heads;
  pool.parallel_for(heads * chunks, [&](int64_t unit, int) {
    const ScoreItem& item = args.items[static_cast<size_t>(unit / (num_kv_heads * chunks))];
    const auto head = static_cast<int32_t>(unit / chunks % num_kv_heads);
    const int64_t first = unit % chunks * chunk_rows;
    const int64_t end = std::min<int64_t>(item.rows.num_rows(head), first + chunk_rows);
    if (first >= end) return;
    if (needs_scores(item.rows, item.keep, head)) {
      score_rows(args, item, head, first, end);
    } else {
      std::fill_n(item.out.f32(head) + first, end - first, 0.0f);
    }
  });
}

}  // namespace restkv::cpu
