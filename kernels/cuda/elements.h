// Values whose type is known at run time only: f32, f16 or bf16, read and written as f32, four at a time.
#pragma once

#include <cstddef>
#include <cstring>

#include "kernels/base/tensor.h"
#include "kernels/cuda/device.h"

namespace restkv::cuda {

__device__ __forceinline__ int32_t bytes_of_element(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

// Four consecutive values, aligned to four values, as they lie in memory: many of them can be on their way at once.
__device__ __forceinline__ uint4 load_raw_four(const std::byte* p, DType dtype) {
  if (dtype == DType::kF32) return load_vector<uint4>(p);
  const uint2 pair = load_vector<uint2>(p);
  return {pair.x, pair.y, 0, 0};
}
__device__ __forceinline__ float4 unpack_four(uint4 raw, DType dtype) {
  if (dtype == DType::kF32) {
    return {bits_to_f32(raw.x), bits_to_f32(raw.y), bits_to_f32(raw.z), bits_to_f32(raw.w)};
  }
  const float2 a = dtype == DType::kF16 ? unpack2<f16>(raw.x) : unpack2<bf16>(raw.x);
  const float2 b = dtype == DType::kF16 ? unpack2<f16>(raw.y) : unpack2<bf16>(raw.y);
  return {a.x, a.y, b.x, b.y};
}
__device__ __forceinline__ float4 load_four(const std::byte* p, DType dtype) {
  return unpack_four(load_raw_four(p, dtype), dtype);
}

// Rounded to nearest even.
__device__ __forceinline__ void store_four(std::byte* p, DType dtype, float4 x) {
  if (dtype == DType::kF32) {
    store_vector(p, x);
  } else if (dtype == DType::kF16) {
    store_vector(p, uint2{pack2<f16>(x.x, x.y), pack2<f16>(x.z, x.w)});
  } else {
    store_vector(p, uint2{pack2<bf16>(x.x, x.y), pack2<bf16>(x.z, x.w)});
  }
}

__device__ __forceinline__ void store_two(std::byte* p, DType dtype, float2 x) {
  if (dtype == DType::kF32) {
    store_vector(p, x);
  } else {
    store_vector(p, dtype == DType::kF16 ? pack2<f16>(x.x, x.y) : pack2<bf16>(x.x, x.y));
  }
}

__device__ __forceinline__ float load_one(const std::byte* p, DType dtype) {
  if (dtype == DType::kF32) return load_vector<float>(p);
  const uint16_t bits = load_vector<uint16_t>(p);
  return dtype == DType::kF16 ? to_f32(f16{bits}) : to_f32(bf16{bits});
}
__device__ __forceinline__ void store_one(std::byte* p, DType dtype, float x) {
  if (dtype == DType::kF32) {
    store_vector(p, x);
  } else {
    store_vector(p, dtype == DType::kF16 ? from_f32<f16>(x).bits : from_f32<bf16>(x).bits);
  }
}

}  // namespace restkv::cuda
