// select: which rows of a head stay. A row's key is 64 bits, larger is better, all different:
//   protected: all ones | row     scored: ordered score | row     dead (outside a layer's window): 0 | row
// With m score arrays the order is by min over i of m * rank_i + i, which interleaves the arrays; for given scores the rows
// kept for a smaller number are a subset of those for a larger one.
#include <algorithm>
#include <array>
#include <functional>
#include <numeric>
#include <vector>

#include "kernels/cpu/eviction/eviction_ops.h"
#include "kernels/cpu/eviction/row_tile.h"
#include "kernels/cpu/eviction/score_key.h"

namespace restkv::cpu {
namespace {

// Upper half of the key of a row that is not scored.
uint32_t key_of(RowPlace place) { return place == RowPlace::kProtected ? 0xFFFFFFFFu : 0; }

// Grow-only memory of a thread.
struct SelectBuffers {
  std::vector<RowPlace> places;                           // [n]
  std::vector<uint64_t> keys;                             // [n]
  std::vector<uint64_t> sorted;                           // [n]
  std::vector<uint32_t> order;                            // [n] merged order value of a row
  std::vector<float> mean;                                // [n] kLayer
  std::vector<std::pair<uint64_t, uint32_t>> candidates;  // kShare: (key, head)
};

int32_t position_of(const SelectArgs& args, const RowSource& rows, int32_t head, int64_t row) {
  const int64_t paged = rows.pages.kv_len ? rows.pages.kv_len[head] : 0;
  if (row >= paged) return rows.first_position + static_cast<int32_t>(row - paged);
  const int32_t page = rows.pages.pages[int64_t{head} * rows.pages.stride + row / args.cache.slots];
  return args.cache.positions(page)[row % args.cache.slots];
}

// Fills places; returns the number of protected rows.
int64_t find_places(const SelectArgs& args, const SelectItem& item, int32_t head, SelectBuffers& buffers) {
  const int64_t n = item.rows.num_rows(head);
  RowPlaces places(item.protect, head, n);
  buffers.places.resize(static_cast<size_t>(n));
  int64_t num_protected = 0;
  int32_t num_dead = 0;
  for (int64_t j = 0; j < n; ++j) {
    const RowPlace place = places.of(j, position_of(args, item.rows, head, j));
    buffers.places[static_cast<size_t>(j)] = place;
    num_dead += place == RowPlace::kDead;
    num_protected += place == RowPlace::kProtected;
  }
  if (item.num_dead) item.num_dead[head] = num_dead;
  return num_protected;
}

// Keys of one score array; returns how many scores that count were not finite.
int32_t make_keys(const float* scores, const std::vector<RowPlace>& places, std::vector<uint64_t>& keys) {
  keys.resize(places.size());
  int32_t non_finite = 0;
  for (size_t j = 0; j < places.size(); ++j) {
    const auto row = static_cast<uint32_t>(j);
    if (places[j] != RowPlace::kScored) {
      keys[j] = uint64_t{key_of(places[j])} << 32 | row;
      continue;
    }
    const float score = rank_first_unless_finite(scores[j]);
    non_finite += score != scores[j] || std::isinf(score);
    keys[j] = score_key(score, row);
  }
  return non_finite;
}

// order[j] of all rows of a head: smaller is better; the rows to keep are those with the smallest values.
int32_t make_order(const std::array<const float*, 3>& scores, int32_t num_scores, SelectBuffers& buffers) {
  const size_t n = buffers.places.size();
  const auto m = static_cast<uint32_t>(num_scores);
  buffers.order.assign(n, UINT32_MAX);
  int32_t non_finite = 0;
  for (uint32_t i = 0; i < m; ++i) {
    const int32_t bad = make_keys(scores[i], buffers.places, buffers.keys);
    if (i == 0) non_finite = bad;
    buffers.sorted.assign(buffers.keys.begin(), buffers.keys.end());
    std::sort(buffers.sorted.begin(), buffers.sorted.end(), std::greater<uint64_t>());
    for (uint32_t rank = 0; rank < n; ++rank) {
      uint32_t& value = buffers.order[static_cast<uint32_t>(buffers.sorted[rank])];
      value = std::min(value, m * rank + i);
    }
  }
  return non_finite;
}

void write_kept(const SelectArgs& args, const SelectItem& item, int32_t head, int64_t keep,
                SelectBuffers& buffers) {
  const auto n = static_cast<int64_t>(buffers.places.size());
  const int64_t count = std::clamp<int64_t>(keep, 0, n);
  CHECK(count <= item.kept.cols) << "room for " << item.kept.cols << " rows, " << count << " stay";
  auto* kept = static_cast<int32_t*>(item.kept.row(head));
  // The count-th smallest order value is the threshold; order values are all different.
  uint32_t threshold = 0;
  if (count > 0) {
    buffers.sorted.resize(static_cast<size_t>(n));
    for (int64_t j = 0; j < n; ++j)
      buffers.sorted[static_cast<size_t>(j)] = buffers.order[static_cast<size_t>(j)];
    std::nth_element(buffers.sorted.begin(), buffers.sorted.begin() + (count - 1), buffers.sorted.end());
    threshold = static_cast<uint32_t>(buffers.sorted[static_cast<size_t>(count - 1)]);
  }
  int32_t written = 0;
  for (int64_t j = 0; j < n && written < count; ++j) {
    if (buffers.order[static_cast<size_t>(j)] <= threshold) kept[written++] = static_cast<int32_t>(j);
  }
  item.kept_len[head] = written;

  if (item.max_new_pins == 0) return;
  if (written == n) {  // nothing was cut, so nothing needs to be saved
    item.num_new_pins[head] = 0;
    return;
  }
  // Kept rows that a pooled array brought in, by order.
  buffers.sorted.clear();
  const auto m = static_cast<uint32_t>(item.num_scores);
  for (int32_t i = 0; i < written; ++i) {
    const auto j = static_cast<size_t>(kept[i]);
    if (buffers.places[j] == RowPlace::kScored && buffers.order[j] % m != 0) {
      buffers.sorted.push_back(uint64_t{buffers.order[j]} << 32 | static_cast<uint32_t>(kept[i]));
    }
  }
  std::sort(buffers.sorted.begin(), buffers.sorted.end());
  const int64_t pins = std::min<int64_t>(item.max_new_pins, static_cast<int64_t>(buffers.sorted.size()));
  int32_t* positions = item.new_pins + int64_t{head} * item.max_new_pins;
  for (int64_t i = 0; i < pins; ++i) {
    positions[i] =
        position_of(args, item.rows, head, static_cast<uint32_t>(buffers.sorted[static_cast<size_t>(i)]));
  }
  std::sort(positions, positions + pins);
  item.num_new_pins[head] = static_cast<int32_t>(pins);
}

void select_head(const SelectArgs& args, const SelectItem& item, int32_t head, int64_t keep,
                 const std::array<const float*, 3>& scores, SelectBuffers& buffers) {
  find_places(args, item, head, buffers);
  const int32_t non_finite = make_order(scores, item.num_scores, buffers);
  if (item.non_finite) item.non_finite[head] = non_finite;
  write_kept(args, item, head, keep, buffers);
}

std::array<const float*, 3> scores_of(const SelectItem& item, int32_t head) {
  std::array<const float*, 3> scores = {};
  for (int32_t i = 0; i < item.num_scores; ++i)
    scores[static_cast<size_t>(i)] = item.scores[static_cast<size_t>(i)].f32(head);
  return scores;
}

// kLayer: every head keeps the rows of the mean score.
void select_layer(const SelectArgs& args, const SelectItem& item, SelectBuffers& buffers) {
  CHECK(item.num_scores == 1) << item.num_scores;
  const int64_t n = item.rows.num_rows(0);
  buffers.mean.assign(static_cast<size_t>(n), 0.0f);
  for (int32_t h = 0; h < args.num_kv_heads; ++h) {
    CHECK(item.rows.num_rows(h) == n)
        << "head " << h << " holds " << item.rows.num_rows(h) << " rows, head 0 " << n;
    const float* scores = item.scores[0].f32(h);
    for (int64_t j = 0; j < n; ++j) buffers.mean[static_cast<size_t>(j)] += scores[j];
  }
  for (float& s : buffers.mean) s /= static_cast<float>(args.num_kv_heads);
  for (int32_t h = 0; h < args.num_kv_heads; ++h) {
    select_head(args, item, h, item.keep[h], {buffers.mean.data(), nullptr, nullptr}, buffers);
  }
}

// kShare: the layer's rows go to the heads by their scores (AdaKV, arXiv 2407.11550), each head at least its protected rows
// and `floor`; ties to the lower head, then newer rows.
void share_layer(const SelectArgs& args, const SelectItem& item, SelectBuffers& buffers) {
  int64_t rest = 0;
  for (int32_t h = 0; h < args.num_kv_heads; ++h) rest += item.keep[h];
  buffers.candidates.clear();
  for (int32_t h = 0; h < args.num_kv_heads; ++h) {
    const int64_t num_protected = find_places(args, item, h, buffers);
    make_keys(item.scores[0].f32(h), buffers.places, buffers.keys);
    std::sort(buffers.keys.begin(), buffers.keys.end(), std::greater<uint64_t>());
    const auto n = static_cast<int64_t>(buffers.keys.size());
    const int64_t mandatory = std::min(n, std::max<int64_t>(item.floor, num_protected));
    item.share[h] = static_cast<int32_t>(mandatory);
    rest -= mandatory;
    for (int64_t i = mandatory; i < n; ++i) {
      buffers.candidates.emplace_back(buffers.keys[static_cast<size_t>(i)], static_cast<uint32_t>(h));
    }
  }
  const auto better = [](const std::pair<uint64_t, uint32_t>& a, const std::pair<uint64_t, uint32_t>& b) {
    const uint64_t score_a = a.first >> 32, score_b = b.first >> 32;
    if (score_a != score_b) return score_a > score_b;
    return a.second != b.second ? a.second < b.second : a.first > b.first;
  };
  const int64_t taken = std::clamp<int64_t>(rest, 0, static_cast<int64_t>(buffers.candidates.size()));
  std::nth_element(buffers.candidates.begin(), buffers.candidates.begin() + taken, buffers.candidates.end(),
                   better);
  for (int64_t i = 0; i < taken; ++i) ++item.share[buffers.candidates[static_cast<size_t>(i)].second];
  for (int32_t h = 0; h < args.num_kv_heads; ++h) {
    select_head(args, item, h, item.share[h] - item.slack, scores_of(item, h), buffers);
  }
}

}  // namespace

void select(const SelectArgs& args, ThreadPool& pool) {
  const auto num_items = static_cast<int64_t>(args.items.size());
  if (args.scope == SelectScope::kHead) {
    const std::vector<HeadUnit>& order = heads_by_length(args.items, args.num_kv_heads);
    pool.parallel_for(static_cast<int64_t>(order.size()), [&](int64_t unit, int) {
      thread_local SelectBuffers buffers;
      const HeadUnit& at = order[static_cast<size_t>(unit)];
      const SelectItem& item = args.items[static_cast<size_t>(at.item)];
      select_head(args, item, at.kv_head, item.keep[at.kv_head], scores_of(item, at.kv_head), buffers);
    });
    return;
  }
  pool.parallel_for(num_items, [&](int64_t unit, int) {
    thread_local SelectBuffers buffers;
    const SelectItem& item = args.items[static_cast<size_t>(unit)];
    if (args.scope == SelectScope::kLayer) {
      select_layer(args, item, buffers);
    } else {
      share_layer(args, item, buffers);
    }
  });
}

}  // namespace restkv::cpu
