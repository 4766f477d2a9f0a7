// Reads rows and queries wherever they lie (pages, scratch, ring; f32, f16, bf16) into dense f32 tiles.
#pragma once

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "kernels/eviction.h"

namespace restkv::cpu {

inline constexpr int64_t kTileRows = 64;

inline int64_t padded_queries(int64_t queries) { return (queries + 15) / 16 * 16; }

// The rows of one KV head of one item.
struct HeadRows {
  HeadRows(const RowSource& source, const AttentionShape& shape, const PagedCacheView& cache, int32_t head);

  // rows [begin, begin + count) as f32 [count, D].
  void load_keys(int64_t begin, int64_t count, float* out) const {
    load(begin, count, /*values=*/false, out);
  }
  void load_values(int64_t begin, int64_t count, float* out) const {
    load(begin, count, /*values=*/true, out);
  }
  // Asks for rows [begin, begin + count) that are in pages.
  void prefetch(int64_t begin, int64_t count, bool values) const;
  int32_t position(int64_t row) const;
  void load_positions(int64_t begin, int64_t count, int32_t* out) const;

  int64_t num_rows = 0;
  int64_t num_paged = 0;

 private:
  void load(int64_t begin, int64_t count, bool values, float* out) const;
  const RowSource& source_;
  const PagedCacheView& cache_;
  const int32_t* pages_ = nullptr;  // of this head
  int32_t head_;
  int64_t head_dim_;
};

// The KV heads of a batch of items (each with `rows`), those of more rows first, so that no thread begins a long one last. In
// memory of this thread that the next call takes.
struct HeadUnit {
  int32_t item, kv_head, num_rows;
};
std::vector<HeadUnit>& head_unit_buffer();
template <class Items>
const std::vector<HeadUnit>& heads_by_length(const Items& items, int32_t num_kv_heads) {
  std::vector<HeadUnit>& units = head_unit_buffer();
  units.clear();
  for (size_t i = 0; i < items.size(); ++i) {
    for (int32_t h = 0; h < num_kv_heads; ++h)
      units.push_back({static_cast<int32_t>(i), h, items[i].rows.num_rows(h)});
  }
  std::sort(units.begin(), units.end(), [](const HeadUnit& a, const HeadUnit& b) {
    return std::tuple(-a.num_rows, a.item, a.kv_head) < std::tuple(-b.num_rows, b.item, b.kv_head);
  });
  return units;
}

// Where a row stands before its score is asked.
enum class RowPlace : uint8_t { kDead, kScored, kProtected };

// The places of one head's rows, asked for in rising order.
class RowPlaces {
 public:
  RowPlaces(const ProtectedRows& protect, int32_t head, int64_t num_rows)
      : protect_(protect), num_rows_(num_rows) {
    if (!protect.pins) return;
    pin_ = protect.pins + int64_t{head} * protect.pin_stride;
    pin_end_ = pin_ + protect.num_pins[head];
  }
  RowPlace of(int64_t row, int32_t position);

 private:
  const ProtectedRows& protect_;
  const int64_t num_rows_;
  const int32_t* pin_ = nullptr;  // first one that is not before the last position asked for
  const int32_t* pin_end_ = nullptr;
};

// out[d * stride + i] = scale * query (begin + i) of query head h, zeros for i in [count, padded).
void load_queries(const QuerySource& source, const AttentionShape& shape, const PagedCacheView& cache,
                  int32_t head, int64_t begin, int64_t count, int64_t padded, float scale, float* out);

// Sum of entry `row` of a KV head.
float* sum_at(const EntrySums& sums, const PagedCacheView& cache, int32_t head, int64_t row);

// Grow-only memory of a thread: after the first event of its size an op allocates nothing.
enum class Buffer { kKeys, kValues, kQueries, kLogits, kProjected, kDistances, kOutputs, kRows, kCount };
float* thread_floats(Buffer buffer, int64_t count);

// -inf where a query does not see a row: logits [rows, stride], row positions [rows], query positions [queries].
void mask_logits(float* logits, int64_t rows, int64_t stride, const int32_t* row_positions,
                 const int32_t* query_positions, int64_t queries, int32_t window);

}  // namespace restkv::cpu
