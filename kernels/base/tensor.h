// Data types and two-dimensional views. A view is a small value; DeviceBuffer (kernels/backend.h) owns
// memory. Block-quantised types (GGUF) pack `block_elems` values of a row into `block_bytes` bytes; a row is
// whole blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "kernels/base/check.h"

namespace restkv {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kI32,
  kU8,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kIQ4_NL,
  kIQ4_XS,
};
inline constexpr int kNumDTypes = 17;

struct DTypeInfo {
  std::string_view name;  // "F32", "Q4_1", ...: the names of safetensors and GGUF
  int64_t block_elems;    // values in a block; 1 for plain types
  int64_t block_bytes;
};

const DTypeInfo& dtype_info(DType dtype);
std::optional<DType> dtype_from_name(std::string_view name);

inline bool is_block_type(DType dtype) { return dtype_info(dtype).block_elems > 1; }

// Bytes of `cols` consecutive values; cols must be whole blocks.
inline int64_t bytes_of(DType dtype, int64_t cols) {
  const DTypeInfo& info = dtype_info(dtype);
  DCHECK(cols % info.block_elems == 0) << info.name << " x " << cols;
  return cols / info.block_elems * info.block_bytes;
}

// [rows, cols], row r at data + r * stride values. Block types are dense: stride == cols.
struct ConstTensor {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  explicit operator bool() const { return data != nullptr; }
  const void* row(int64_t r) const {
    return static_cast<const std::byte*>(data) + bytes_of(dtype, stride) * r;
  }
  const float* f32(int64_t r = 0) const {
    DCHECK(dtype == DType::kF32);
    return static_cast<const float*>(data) + r * stride;
  }
};

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  explicit operator bool() const { return data != nullptr; }
  operator ConstTensor() const { return {data, dtype, rows, cols, stride}; }  // NOLINT: a view of a view
  void* row(int64_t r) const { return static_cast<std::byte*>(data) + bytes_of(dtype, stride) * r; }
  float* f32(int64_t r = 0) const {
    DCHECK(dtype == DType::kF32);
    return static_cast<float*>(data) + r * stride;
  }
  // Rows [begin, begin + count).
  Tensor row_range(int64_t begin, int64_t count) const { return {row(begin), dtype, count, cols, stride}; }
  // Columns [begin, begin + count) of every row; plain types only.
  Tensor col_range(int64_t begin, int64_t count) const {
    std::byte* first = data ? static_cast<std::byte*>(data) + bytes_of(dtype, begin) : nullptr;
    return {first, dtype, rows, count, stride};
  }
};

inline ConstTensor dense(const void* data, DType dtype, int64_t rows, int64_t cols) {
  return {data, dtype, rows, cols, cols};
}
inline Tensor dense(void* data, DType dtype, int64_t rows, int64_t cols) {
  return {data, dtype, rows, cols, cols};
}

}  // namespace restkv
