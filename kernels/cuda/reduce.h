// Reductions over a warp and a block. Every thread of the block calls; all get the result.
#pragma once

#include "kernels/cuda/device.h"

namespace restkv::cuda {

struct Sum {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

template <class T, class Op>
__device__ __forceinline__ T warp_reduce(T v, Op op) {
  for (uint32_t bits = 16; bits > 0; bits >>= 1) v = op(v, shuffle_xor(v, bits));
  return v;
}

// The sum over a block with one barrier: `partial` [32] in shared memory is free only after the next one.
__device__ __forceinline__ float block_sum(float v, float* partial) {
  v = warp_reduce(v, Sum{});
  if (lane_idx() == 0) partial[warp_idx()] = v;
  sync_threads();
  return warp_reduce(lane_idx() < blockDim.x / kWarpSize ? partial[lane_idx()] : 0.0f, Sum{});
}

}  // namespace restkv::cuda
