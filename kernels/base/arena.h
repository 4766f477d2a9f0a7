// Hands out 64-byte aligned pieces of one block. Without a base it only counts: the plan of memory and the
// allocation are the same code, so they cannot disagree.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/base/tensor.h"

namespace restkv {

class Arena {
 public:
  static Arena counting() { return Arena(nullptr, INT64_MAX); }
  Arena(std::byte* base, int64_t capacity) : base_(base), capacity_(capacity) {}

  Tensor tensor(DType dtype, int64_t rows, int64_t cols) {
    return {take(bytes_of(dtype, cols) * rows), dtype, rows, cols, cols};
  }
  int64_t used() const { return used_; }

 private:
  void* take(int64_t bytes) {
    std::byte* place = base_ ? base_ + used_ : nullptr;
    used_ += (bytes + 63) / 64 * 64;
    CHECK(used_ <= capacity_) << "arena of " << capacity_ << " bytes is too small";
    return place;
  }
  std::byte* base_;
  int64_t capacity_;
  int64_t used_ = 0;
};

}  // namespace restkv
