// How the host arguments of the eviction ops become the views that kernels read, and how small results come back.
#pragma once

#include <algorithm>
#include <bit>
#include <cstring>
#include <span>
#include <vector>

#include "kernels/cuda/context.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/eviction/row_tile.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/eviction.h"

namespace restkv::cuda {

// Small results that the args want on the host: kernels write them there, and they are awaited. Made before the op stages
// anything.
class HostResults {
 public:
  HostResults(Context& context, int64_t bytes)
      : context_(context), place_(context.host_results<std::byte>(static_cast<size_t>(bytes))) {}

  template <class T>
  static int64_t bytes_of(int64_t count) {
    return (count * static_cast<int64_t>(sizeof(T)) + 7) / 8 * 8;
  }
  template <class T>
  T* add(T* host, int64_t count) {
    T* place = reinterpret_cast<T*>(place_.data() + used_);
    parts_.push_back(
        {[](const Awaited& part) { std::memcpy(part.to, part.from, static_cast<size_t>(part.count)); }, host,
         count * static_cast<int64_t>(sizeof(T)), place});
    used_ += bytes_of<T>(count);
    CHECK(used_ <= static_cast<int64_t>(place_.size())) << used_ << " of " << place_.size();
    return place;
  }
  // The kernels that fill them are launched.
  void await() const {
    for (const Awaited& part : parts_) context_.await(part);
  }

 private:
  Context& context_;
  std::span<std::byte> place_;
  int64_t used_ = 0;
  std::vector<Awaited> parts_;
};

inline int32_t most_rows(const RowSource& rows, int32_t num_kv_heads) {
  int32_t most = 0;
  for (int32_t h = 0; h < num_kv_heads; ++h) most = std::max(most, rows.num_rows(h));
  return most;
}

inline PoolView pool_view(const PagedCacheView& cache) {
  CHECK(cache.pool == nullptr || std::has_single_bit(static_cast<uint32_t>(cache.slots)))
      << "pages of " << cache.slots << " slots: powers of 2";
  const int64_t half = cache.pool ? bytes_of(cache.dtype, int64_t{cache.slots} * cache.head_dim) : 0;
  return {.pool = cache.pool,
          .page_bytes = cache.page_bytes,
          .value_offset = half,
          .position_offset = 2 * half,
          .slots = cache.slots,
          .slot_shift = cache.pool ? std::countr_zero(static_cast<uint32_t>(cache.slots)) : 0,
          .dtype = cache.dtype};
}

inline RowsView rows_view(Context& context, const RowSource& rows, int32_t num_kv_heads) {
  RowsView view{};
  if (rows.pages.kv_len) {
    view.pages = context.page_table(rows.pages, num_kv_heads);
    view.kv_len = context.upload(rows.pages.kv_len, num_kv_heads);
    view.stride = rows.pages.stride;
  }
  if (rows.k) {
    view.k = static_cast<const std::byte*>(rows.k.data);
    view.v = static_cast<const std::byte*>(rows.v.data);
    view.k_row_bytes = bytes_of(rows.k.dtype, rows.k.stride);
    view.v_row_bytes = bytes_of(rows.v.dtype, rows.v.stride);
    view.scratch_rows = static_cast<int32_t>(rows.k.rows);
    view.first_position = rows.first_position;
    view.dtype = rows.k.dtype;
  }
  return view;
}

inline QueriesView queries_view(Context& context, const QuerySource& queries, const AttentionShape& shape) {
  QueriesView view{};
  view.positions = context.upload(queries.positions.data(), static_cast<int64_t>(queries.positions.size()));
  view.num_queries = static_cast<int32_t>(queries.positions.size());
  if (queries.rows) {
    view.rows = static_cast<const std::byte*>(queries.rows.data);
    view.row_bytes = bytes_of(queries.rows.dtype, queries.rows.stride);
    view.dtype = queries.rows.dtype;
  } else {
    view.ring_pages = context.page_table(queries.ring, shape.num_kv_heads);
    view.ring_stride = queries.ring.stride;
    view.ring_window = queries.ring.window;
  }
  return view;
}

// ProtectedRows on the device.
struct ProtectView {
  const int32_t* pins;      // [K, pin_stride], ascending positions; null: none
  const int32_t* num_pins;  // [K]
  int32_t pin_stride;
  int32_t head_end, tail_begin, tail_end, recent, dead_before;
};
inline ProtectView protect_view(Context& context, const ProtectedRows& protect, int32_t num_kv_heads) {
  ProtectView view{};
  if (protect.pins) {
    view.pins = context.upload(protect.pins, int64_t{num_kv_heads} * protect.pin_stride);
    view.num_pins = context.upload(protect.num_pins, num_kv_heads);
    view.pin_stride = protect.pin_stride;
  }
  view.head_end = protect.head_end;
  view.tail_begin = protect.tail_begin;
  view.tail_end = protect.tail_end;
  view.recent = protect.recent;
  view.dead_before = protect.dead_before;
  return view;
}

constexpr uint32_t kProtected = 0xFFFFFFFFu;
constexpr uint32_t kDead = 0;
// kProtected, kDead or 1 (by its score).
__device__ __forceinline__ uint32_t place_of(const ProtectView& item, const DeviceRows& rows, int32_t row,
                                             int32_t position) {
  if (position < item.dead_before) return kDead;
  if (position < item.head_end || (position >= item.tail_begin && position < item.tail_end) ||
      row >= rows.num_rows - item.recent) {
    return kProtected;
  }
  if (item.pins) {
    const int32_t* pins = item.pins + int64_t{rows.head} * item.pin_stride;
    int32_t begin = 0, end = item.num_pins[rows.head];
    while (begin < end) {
      const int32_t middle = (begin + end) / 2;
      if (pins[middle] < position) {
        begin = middle + 1;
      } else {
        end = middle;
      }
    }
    if (begin < item.num_pins[rows.head] && pins[begin] == position) return kProtected;
  }
  return 1;
}
__device__ __forceinline__ uint32_t place_of(const ProtectView& item, const DeviceRows& rows, int32_t row) {
  return place_of(item, rows, row, rows.position(row));
}

inline LogitShape logit_shape(const AttentionShape& shape) {
  return {.dim = shape.head_dim,
          .group = shape.num_heads / shape.num_kv_heads,
          .scale = shape.scale,
          .softcap = shape.softcap,
          .window = shape.window};
}

}  // namespace restkv::cuda
