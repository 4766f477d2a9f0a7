// The paged KV cache as kernels see it. A page holds S slots of one KV head of one layer:
//   K [S, D] | V [S, D] | pos [S] int32
// Entry j of a head lies in slot j % S of page table[j / S]. `kv_len` entries are valid; positions increase
// strictly with j. kv_len is a count of entries, position a count of tokens: neither is computed from the
// other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/tensor.h"

namespace restkv {

struct PagedCacheView {
  std::byte* pool = nullptr;  // [num_pages] pages of page_bytes
  DType dtype = DType::kF32;  // of K and V
  int32_t slots = 16;         // S
  int32_t head_dim = 0;       // D
  int64_t page_bytes = 0;

  static int64_t bytes_per_page(DType dtype, int32_t slots, int32_t head_dim) {
    const int64_t bytes = 2 * bytes_of(dtype, int64_t{slots} * head_dim) + int64_t{slots} * 4;
    return (bytes + 63) / 64 * 64;
  }
  std::byte* keys(int32_t page) const { return pool + page_bytes * page; }  // [S, D]
  std::byte* values(int32_t page) const {
    return keys(page) + bytes_of(dtype, int64_t{slots} * head_dim);
  }                                         // [S, D]
  int32_t* positions(int32_t page) const {  // [S]
    return reinterpret_cast<int32_t*>(keys(page) + 2 * bytes_of(dtype, int64_t{slots} * head_dim));
  }
};

// The pages and lengths of one sequence in one layer.
struct HeadTables {
  const int32_t* pages = nullptr;     // [K, stride] page ids
  int32_t stride = 0;                 // ids per head
  const int32_t* kv_len = nullptr;    // [K] valid entries of each head
  const int32_t* resident = nullptr;  // `pages` in the backend's memory, where they are there too
};

}  // namespace restkv
