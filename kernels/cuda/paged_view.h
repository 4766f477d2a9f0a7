// The paged cache as a kernel sees it: K [S, D] | V [S, D] | pos [S] of each page, kernels/base/paged_cache.h says the rest.
#pragma once

#include "kernels/base/paged_cache.h"
#include "kernels/cuda/device.h"

namespace restkv::cuda {

template <class T>
struct PagedView {
  std::byte* pool = nullptr;  // [num_pages] pages of page_bytes
  int64_t page_bytes = 0;
  int32_t slots = 0;     // S
  int32_t head_dim = 0;  // D

  __device__ __forceinline__ T* keys(int32_t page) const {  // [S, D]
    return reinterpret_cast<T*>(pool + page_bytes * page);
  }
  __device__ __forceinline__ T* values(int32_t page) const {  // [S, D]
    return keys(page) + static_cast<int64_t>(slots) * head_dim;
  }
  __device__ __forceinline__ int32_t* positions(int32_t page) const {  // [S]
    return reinterpret_cast<int32_t*>(keys(page) + 2 * static_cast<int64_t>(slots) * head_dim);
  }
};

// Every slot's K and V begin at multiples of 16 bytes and are whole pieces of so many (pieces.h).
inline bool has_whole_pieces(const PagedCacheView& cache) {
  return reinterpret_cast<uintptr_t>(cache.pool) % 16 == 0 && cache.page_bytes % 16 == 0 &&
         bytes_of(cache.dtype, cache.head_dim) % 16 == 0;
}

template <class T>
PagedView<T> paged_view(const PagedCacheView& cache) {
  return {cache.pool, cache.page_bytes, cache.slots, cache.head_dim};
}

}  // namespace restkv::cuda
