// compact: the rows that stay, in order, to entries 0, 1, ... of the destination; and store_queries, the ring's writer.
// Row i of the destination comes from row kept[i] >= i, and rows are copied in rising order: in place nothing is
// overwritten before it was read.
#include <algorithm>
#include <cstring>

#include "kernels/base/float16.h"
#include "kernels/cpu/eviction/eviction_ops.h"
#include "kernels/cpu/eviction/row_tile.h"

namespace restkv::cpu {
namespace {

void convert_to(const float* src, DType dtype, int64_t count, std::byte* out) {
  if (dtype == DType::kF32) {
    std::memcpy(out, src, static_cast<size_t>(count) * 4);
    return;
  }
  auto* half = reinterpret_cast<uint16_t*>(out);
  for (int64_t i = 0; i < count; ++i)
    half[i] = dtype == DType::kF16 ? f32_to_f16(src[i]) : f32_to_bf16(src[i]);
}

void compact_head(const CompactArgs& args, const CompactItem& item, int32_t head) {
  const PagedCacheView& cache = args.cache;
  const int64_t dim = args.shape.head_dim;
  const int64_t row_bytes = bytes_of(cache.dtype, dim);
  const HeadRows rows(item.rows, args.shape, cache, head);
  const auto* kept = item.kept ? static_cast<const int32_t*>(item.kept.row(head)) : nullptr;
  const int32_t* source_pages =
      item.rows.pages.kv_len ? item.rows.pages.pages + int64_t{head} * item.rows.pages.stride : nullptr;
  const int32_t* pages = item.destination.pages + int64_t{head} * item.destination.stride;
  float* scratch = thread_floats(Buffer::kRows, dim);
  int64_t moved = 0;
  for (int64_t i = 0; i < item.kept_len[head]; ++i) {
    const int64_t row = kept ? kept[i] : i;
    DCHECK(row >= i && row < rows.num_rows && (i == 0 || !kept || row > kept[i - 1]))
        << "row " << row << " to entry " << i;
    const int32_t page = pages[i / cache.slots];
    const int64_t slot = i % cache.slots;
    std::byte* key = cache.keys(page) + slot * row_bytes;
    std::byte* value = cache.values(page) + slot * row_bytes;
    if (row < rows.num_paged) {
      const int32_t from = source_pages[row / cache.slots];
      const int64_t from_slot = row % cache.slots;
      if (from == page && from_slot == slot) continue;
      std::memcpy(key, cache.keys(from) + from_slot * row_bytes, static_cast<size_t>(row_bytes));
      std::memcpy(value, cache.values(from) + from_slot * row_bytes, static_cast<size_t>(row_bytes));
      cache.positions(page)[slot] = cache.positions(from)[from_slot];
    } else {
      rows.load_keys(row, 1, scratch);
      convert_to(scratch, cache.dtype, dim, key);
      rows.load_values(row, 1, scratch);
      convert_to(scratch, cache.dtype, dim, value);
      cache.positions(page)[slot] = rows.position(row);
    }
    ++moved;
  }
  if (item.sums.pages) {
    const float* scores = item.scores.f32(head);
    for (int64_t i = 0; i < item.kept_len[head]; ++i)
      *sum_at(item.sums, cache, head, i) = scores[kept ? kept[i] : i];
  }
  if (item.moved) item.moved[head] = moved;
}

void store_segment(const StoreQueriesArgs& args, const StoreQueriesSegment& segment, int32_t head) {
  const PagedCacheView& cache = args.cache;
  const int64_t dim = args.shape.head_dim;
  const int32_t group = args.shape.num_heads / args.shape.num_kv_heads;
  const QueryRing& ring = segment.ring;
  const int64_t rows_per_page = 2 * int64_t{cache.slots};
  const int64_t first = std::max<int64_t>(0, segment.num_rows - ring.window);
  for (int64_t i = first; i < segment.num_rows; ++i) {
    const int32_t position = args.positions[static_cast<size_t>(segment.row_begin + i)];
    const int64_t row = position % ring.window * int64_t{group} + head % group;
    const int32_t page = ring.pages[int64_t{head / group} * ring.stride + row / rows_per_page];
    convert_to(args.q.f32(segment.row_begin + i) + head * dim, cache.dtype, dim,
               cache.keys(page) + bytes_of(cache.dtype, row % rows_per_page * dim));
  }
}

}  // namespace

void compact(const CompactArgs& args, ThreadPool& pool) {
  const std::vector<HeadUnit>& order = heads_by_length(args.items, args.shape.num_kv_heads);
  pool.parallel_for(static_cast<int64_t>(order.size()), [&](int64_t unit, int) {
    const HeadUnit& at = order[static_cast<size_t>(unit)];
    compact_head(args, args.items[static_cast<size_t>(at.item)], at.kv_head);
  });
}

void store_queries(const StoreQueriesArgs& args, ThreadPool& pool) {
  const int32_t num_heads = args.shape.num_heads;
  const auto store = [&](int64_t unit, int) {
    store_segment(args, args.segments[static_cast<size_t>(unit / num_heads)],
                  static_cast<int32_t>(unit % num_heads));
  };
  // A decode step stores a row a sequence in every layer: less than it costs to hand it out.
  constexpr int64_t kFewValues = 8192;
  int64_t num_rows = 0;
  for (const StoreQueriesSegment& segment : args.segments) num_rows += segment.num_rows;
  const int64_t units = static_cast<int64_t>(args.segments.size()) * num_heads;
  if (num_rows * num_heads * args.shape.head_dim > kFewValues) return pool.parallel_for(units, store);
  for (int64_t unit = 0; unit < units; ++unit) store(unit, 0);
}

}  // namespace restkv::cpu
