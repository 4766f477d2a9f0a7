// residual += x (where given), then out = y / sqrt(mean(y^2) + eps) * (offset + weight) per group of C columns, y = residual
// or x (arXiv 1910.07467, eq. 4). Sums in f32. Bound by memory.
// Wide groups (model norm): a block of 256 threads owns one group of one row. Narrow ones (QK-norm): a warp owns one.
// A thread reads in the second pass only what it wrote in the first, so out may be x.
// Occupancy: rmsnorm_block_kernel 256 x 8, rmsnorm_warp_kernel 256 x 8.
#include "kernels/cuda/device.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/plain_values.h"
#include "kernels/cuda/reduce.h"

namespace restkv::cuda {
namespace {

constexpr uint32_t kThreads = 256, kWarps = kThreads / kWarpSize;
constexpr int64_t kWarpCols = 512;  // groups up to here are a warp's

template <class T>
struct RmsNormParams {
  const T* x;          // [T, groups * C]
  T* residual;         // [T, groups * C] or null
  T* out;              // [T, groups * C]
  PlainValues weight;  // [C]
  int64_t x_stride, residual_stride, out_stride;
  int64_t cols;    // C
  int64_t groups;  // of a row
  int64_t rows;
  float eps, offset;
};

// The values thread `at` of `threads` has of group `group` of row `row`: adds the residual, gives their squares.
template <class T>
__device__ __forceinline__ float add_and_square(const RmsNormParams<T>& p, int64_t row, int64_t group,
                                                uint32_t at, uint32_t threads) {
  const T* x = p.x + row * p.x_stride + group * p.cols;
  T* residual = p.residual + row * p.residual_stride + group * p.cols;
  float squares = 0.0f;
  for (int64_t i = at; i < p.cols; i += threads) {
    float v = to_f32(x[i]);
    if (p.residual != nullptr) {
      residual[i] = from_f32<T>(to_f32(residual[i]) + v);
      v = to_f32(residual[i]);
    }
    squares = fma_rn(v, v, squares);
  }
  return squares;
}

template <class T>
__device__ __forceinline__ void write_scaled(const RmsNormParams<T>& p, int64_t row, int64_t group,
                                             uint32_t at, uint32_t threads, float squares) {
  const T* from = p.residual != nullptr ? p.residual + row * p.residual_stride : p.x + row * p.x_stride;
  T* out = p.out + row * p.out_stride + group * p.cols;
  const float scale = rsqrt_exact(squares / static_cast<float>(p.cols) + p.eps);
  for (int64_t i = at; i < p.cols; i += threads)
    out[i] = from_f32<T>(to_f32(from[group * p.cols + i]) * scale * (p.offset + p.weight[i]));
}

template <class T>
__global__ void __launch_bounds__(kThreads, 8)
    rmsnorm_block_kernel(const __grid_constant__ RmsNormParams<T> p) {
  const int64_t row = blockIdx.x, group = blockIdx.y;
  const float squares =
      block_reduce(add_and_square(p, row, group, threadIdx.x, kThreads), Sum{}, shared_memory<float>());
  write_scaled(p, row, group, threadIdx.x, kThreads, squares);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 8)
    rmsnorm_warp_kernel(const __grid_constant__ RmsNormParams<T> p) {
  const int64_t item = int64_t{blockIdx.x} * kWarps + warp_idx();
  if (item >= p.rows * p.groups) return;  // a whole warp
  const int64_t row = item / p.groups, group = item % p.groups;
  const float squares = warp_reduce(add_and_square(p, row, group, lane_idx(), kWarpSize), Sum{});
  write_scaled(p, row, group, lane_idx(), kWarpSize, squares);
}

}  // namespace

void rmsnorm(Context& context, const RmsNormArgs& args) {
  if (args.x.rows == 0) return;
  const int64_t cols = args.weight.cols, groups = args.x.cols / cols;
  dispatch_float(args.x.dtype, [&]<class T>() {
    const RmsNormParams<T> params{static_cast<const T*>(args.x.data),
                                  static_cast<T*>(args.residual.data),
                                  static_cast<T*>(args.out.data),
                                  plain_values(args.weight),
                                  args.x.stride,
                                  args.residual.stride,
                                  args.out.stride,
                                  cols,
                                  groups,
                                  args.x.rows,
                                  args.eps,
                                  args.offset};
    if (cols <= kWarpCols) {
      launch(rmsnorm_warp_kernel<T>, {.x = blocks_of(args.x.rows * groups, kWarps)}, kThreads, 0,
             context.ready(), params);
    } else {
      launch(rmsnorm_block_kernel<T>,
             {.x = static_cast<uint32_t>(args.x.rows), .y = static_cast<uint32_t>(groups)}, kThreads,
             kWarpSize * sizeof(float), context.ready(), params);
    }
  });
}

}  // namespace restkv::cuda
