// Vectors whose type is known at run time only: norm weights and biases, f32, f16 or bf16 as the file has them.
#pragma once

#include "kernels/base/tensor.h"
#include "kernels/cuda/device.h"

namespace restkv::cuda {

struct PlainValues {
  const void* data;  // [n], may be null
  int32_t kind;      // 0: f32, 1: f16, 2: bf16

  __device__ __forceinline__ float operator[](int64_t i) const {
    if (kind == 0) return static_cast<const float*>(data)[i];
    if (kind == 1) return to_f32(static_cast<const f16*>(data)[i]);
    return to_f32(static_cast<const bf16*>(data)[i]);
  }
};

inline PlainValues plain_values(const ConstTensor& tensor) {
  CHECK(!tensor || tensor.dtype == DType::kF32 || tensor.dtype == DType::kF16 || tensor.dtype == DType::kBF16)
      << dtype_info(tensor.dtype).name;
  return {tensor.data, tensor.dtype == DType::kF32 ? 0 : tensor.dtype == DType::kF16 ? 1 : 2};
}

}  // namespace restkv::cuda
