// Gathering of rows: 64 rows of D floats at a time, so that the cost is one copy beside tens of multiply-adds a value.
#include "kernels/cpu/eviction/row_tile.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "kernels/base/float16.h"

namespace restkv::cpu {
namespace {

void convert(const void* src, DType dtype, int64_t count, float* out) {
  if (dtype == DType::kF32) {
    std::memcpy(out, src, static_cast<size_t>(count) * 4);
    return;
  }
  const auto* half = static_cast<const uint16_t*>(src);
  if (dtype == DType::kF16) {
    for (int64_t i = 0; i < count; ++i) out[i] = f16_to_f32(half[i]);
  } else {
    CHECK(dtype == DType::kBF16) << dtype_info(dtype).name;
    for (int64_t i = 0; i < count; ++i) out[i] = bf16_to_f32(half[i]);
  }
}

}  // namespace

HeadRows::HeadRows(const RowSource& source, const AttentionShape& shape, const PagedCacheView& cache,
                   int32_t head)
    : source_(source), cache_(cache), head_(head), head_dim_(shape.head_dim) {
  if (source.pages.kv_len) {
    num_paged = source.pages.kv_len[head];
    pages_ = source.pages.pages + int64_t{head} * source.pages.stride;
  }
  num_rows = source.num_rows(head);
}

void HeadRows::load(int64_t begin, int64_t count, bool values, float* out) const {
  const int64_t end = begin + count;
  int64_t row = begin;
  while (row < std::min(end, num_paged)) {  // runs inside a page
    const int64_t slot = row % cache_.slots;
    const int64_t run = std::min(std::min(end, num_paged) - row, cache_.slots - slot);
    const int32_t page = pages_[row / cache_.slots];
    const std::byte* base = values ? cache_.values(page) : cache_.keys(page);
    convert(base + bytes_of(cache_.dtype, slot * head_dim_), cache_.dtype, run * head_dim_, out);
    out += run * head_dim_;
    row += run;
  }
  const ConstTensor& scratch = values ? source_.v : source_.k;
  for (; row < end; ++row, out += head_dim_) {
    const auto* data = static_cast<const std::byte*>(scratch.row(row - num_paged));
    convert(data + bytes_of(scratch.dtype, head_ * head_dim_), scratch.dtype, head_dim_, out);
  }
}

void HeadRows::prefetch(int64_t begin, int64_t count, bool values) const {
  constexpr int64_t kLine = 64;
  const int64_t end = std::min(begin + count, num_paged);
  for (int64_t row = begin; row < end;) {
    const int64_t slot = row % cache_.slots;
    const int64_t run = std::min(end - row, cache_.slots - slot);
    const int32_t page = pages_[row / cache_.slots];
    const std::byte* base =
        (values ? cache_.values(page) : cache_.keys(page)) + bytes_of(cache_.dtype, slot * head_dim_);
    const int64_t bytes = bytes_of(cache_.dtype, run * head_dim_);
    for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(base + i);
    row += run;
  }
}

int32_t HeadRows::position(int64_t row) const {
  if (row >= num_paged) return source_.first_position + static_cast<int32_t>(row - num_paged);
  return cache_.positions(pages_[row / cache_.slots])[row % cache_.slots];
}

void HeadRows::load_positions(int64_t begin, int64_t count, int32_t* out) const {
  const int64_t end = begin + count;
  int64_t row = begin;
  while (row < std::min(end, num_paged)) {  // runs inside a page
    const int64_t slot = row % cache_.slots;
    const int64_t run = std::min(std::min(end, num_paged) - row, cache_.slots - slot);
    out = std::copy_n(cache_.positions(pages_[row / cache_.slots]) + slot, run, out);
    row += run;
  }
  for (; row < end; ++row) *out++ = source_.first_position + static_cast<int32_t>(row - num_paged);
}

RowPlace RowPlaces::of(int64_t row, int32_t position) {
  if (position < protect_.dead_before) return RowPlace::kDead;
  while (pin_ != pin_end_ && *pin_ < position) ++pin_;
  const bool is_pinned = pin_ != pin_end_ && *pin_ == position;
  const bool is_tail = position >= protect_.tail_begin && position < protect_.tail_end;
  return position < protect_.head_end || is_tail || is_pinned || row >= num_rows_ - protect_.recent
             ? RowPlace::kProtected
             : RowPlace::kScored;
}

void load_queries(const QuerySource& source, const AttentionShape& shape, const PagedCacheView& cache,
                  int32_t head, int64_t begin, int64_t count, int64_t padded, float scale, float* out) {
  const int64_t dim = shape.head_dim;
  const int32_t group = shape.num_heads / shape.num_kv_heads;
  float* row = thread_floats(Buffer::kRows, dim);
  std::fill(out, out + dim * padded, 0.0f);
  for (int64_t i = 0; i < count; ++i) {
    const float* query = row;
    if (source.rows) {
      query = source.rows.f32(begin + i) + head * dim;
    } else {
      const int64_t slot =
          source.positions[static_cast<size_t>(begin + i)] % source.ring.window * int64_t{group} +
          head % group;
      const int64_t rows_per_page = 2 * int64_t{cache.slots};
      const int32_t page =
          source.ring.pages[int64_t{head / group} * source.ring.stride + slot / rows_per_page];
      convert(cache.keys(page) + bytes_of(cache.dtype, slot % rows_per_page * dim), cache.dtype, dim, row);
    }
    for (int64_t d = 0; d < dim; ++d) out[d * padded + i] = scale * query[d];
  }
}

float* sum_at(const EntrySums& sums, const PagedCacheView& cache, int32_t head, int64_t row) {
  const int64_t per_page = EntrySums::floats_per_page(cache.dtype, cache.slots, cache.head_dim);
  const int32_t page = sums.pages[int64_t{head} * sums.stride + row / per_page];
  return reinterpret_cast<float*>(cache.keys(page)) + row % per_page;
}

std::vector<HeadUnit>& head_unit_buffer() {
  thread_local std::vector<HeadUnit> units;
  return units;
}

float* thread_floats(Buffer buffer, int64_t count) {
  thread_local std::array<std::vector<float>, static_cast<size_t>(Buffer::kCount)> buffers;
  std::vector<float>& memory = buffers[static_cast<size_t>(buffer)];
  if (static_cast<int64_t>(memory.size()) < count) memory.resize(static_cast<size_t>(count));
  return memory.data();
}

void mask_logits(float* logits, int64_t rows, int64_t stride, const int32_t* row_positions,
                 const int32_t* query_positions, int64_t queries, int32_t window) {
  const bool all_seen = row_positions[rows - 1] <= query_positions[0] &&
                        (window == 0 || row_positions[0] > query_positions[queries - 1] - window);
  if (all_seen) return;
  constexpr float kHidden = -std::numeric_limits<float>::infinity();
  // Positions rise: a row is hidden from the first queries, which come before it, and from the last, whose window it has left.
  for (int64_t j = 0; j < rows; ++j) {
    float* row = logits + j * stride;
    for (int64_t t = 0; t < queries && query_positions[t] < row_positions[j]; ++t) row[t] = kHidden;
    if (window == 0) continue;
    for (int64_t t = queries - 1; t >= 0 && int64_t{query_positions[t]} - row_positions[j] >= window; --t)
      row[t] = kHidden;
  }
}

}  // namespace restkv::cpu
