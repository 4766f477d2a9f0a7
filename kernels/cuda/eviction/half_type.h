// Whether the rows and queries of an eviction op are what its tensor-core kernel takes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "kernels/eviction.h"

namespace restkv::cuda {

// The one 16-bit type of all rows and queries, f32 where there is none. Item: ObserveItem or ScoreItem.
template <class Item>
DType common_type(std::span<const Item> items, const PagedCacheView& cache) {
  DType common = DType::kF32;
  bool is_first = true;
  const auto join = [&](DType type) {
    if (is_first) common = type;
    is_first = false;
    if (type != common) common = DType::kF32;
  };
  for (const Item& item : items) {
    if (item.rows.pages.kv_len) join(cache.dtype);
    if (item.rows.k) {
      join(item.rows.k.dtype);
      join(item.rows.v.dtype);
    }
    join(item.queries.rows ? item.queries.rows.dtype : cache.dtype);
    if (common == DType::kF32) break;
  }
  return common;
}

// 16-byte pieces everywhere.
template <class Item>
bool is_aligned(std::span<const Item> items, int32_t head_dim) {
  const auto is = [](const ConstTensor& t) {
    return !t || (reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && bytes_of(t.dtype, t.stride) % 16 == 0);
  };
  return head_dim % 8 == 0 && std::all_of(items.begin(), items.end(), [&](const Item& item) {
           return is(item.rows.k) && is(item.rows.v) && is(item.queries.rows);
         });
}

}  // namespace restkv::cuda
