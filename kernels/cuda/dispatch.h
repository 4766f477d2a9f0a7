// From a DType at run time to a type of kernels: dispatch_float(dtype, [&]<class T>() { launch(kernel<T>, ...); });
#pragma once

#include "kernels/base/tensor.h"
#include "kernels/cuda/device_types.h"

namespace restkv::cuda {

template <class F>
void dispatch_float(DType dtype, F&& run) {
  switch (dtype) {
    case DType::kF32: run.template operator()<float>(); return;
    case DType::kF16: run.template operator()<f16>(); return;
    case DType::kBF16: run.template operator()<bf16>(); return;
    default: CHECK(false) << "no kernel for " << dtype_info(dtype).name;
  }
}

// The same for 16-bit types only.
template <class F>
void dispatch_half(DType dtype, F&& run) {
  switch (dtype) {
    case DType::kF16: run.template operator()<f16>(); return;
    case DType::kBF16: run.template operator()<bf16>(); return;
    default: CHECK(false) << "no kernel for " << dtype_info(dtype).name;
  }
}

inline uint32_t blocks_of(int64_t count, int64_t per_block) {
  return static_cast<uint32_t>((count + per_block - 1) / per_block);
}

}  // namespace restkv::cuda
