// Reads rows and queries wherever they lie (pages, scratch, ring; f32, f16, bf16) into dense f32 tiles.
#pragma once

#include <cstdint>
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
