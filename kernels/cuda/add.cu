// residual[t] += x[t], [T, M]. Bound by memory: 3 * T * M values. Block: 256 threads over 1024 values of one row.
// Occupancy: add_kernel 256 x 8.
#include "kernels/cuda/device.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

namespace restkv::cuda {
namespace {

constexpr uint32_t kThreads = 256, kPerBlock = 1024;

template <class T>
struct AddParams {
  T* residual;  // [T, M]
  const T* x;   // [T, M]
  int64_t residual_stride, x_stride;
  int64_t cols;
};

template <class T>
__global__ void __launch_bounds__(kThreads, 8) add_kernel(const __grid_constant__ AddParams<T> p) {
  T* residual = p.residual + blockIdx.x * p.residual_stride;
  const T* x = p.x + blockIdx.x * p.x_stride;
  const int64_t begin = int64_t{blockIdx.y} * kPerBlock;
  const int64_t end = min(p.cols, begin + kPerBlock);
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads)
    residual[i] = from_f32<T>(to_f32(residual[i]) + to_f32(x[i]));
}

}  // namespace

void add(Context& context, const AddArgs& args) {
  if (args.x.rows == 0) return;
  dispatch_float(args.residual.dtype, [&]<class T>() {
    launch(add_kernel<T>, {.x = static_cast<uint32_t>(args.x.rows), .y = blocks_of(args.x.cols, kPerBlock)},
           kThreads, 0, context.ready(),
           AddParams<T>{static_cast<T*>(args.residual.data), static_cast<const T*>(args.x.data),
                        args.residual.stride, args.x.stride, args.x.cols});
  });
}

}  // namespace restkv::cuda
