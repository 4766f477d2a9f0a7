// residual[t] += x[t], [T, M]. Bound by memory: 3 * T * M values. Grid: (rows, columns). A thread owns a piece of 16 bytes.
// Occupancy: add_kernel 128 x 16.
#include "kernels/cuda/device.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/pieces.h"

namespace restkv::cuda {
namespace {

constexpr uint32_t kThreads = 128;

template <class T>
struct AddParams {
  T* residual;  // [T, M]
  const T* x;   // [T, M]
  int64_t residual_stride, x_stride;
  int64_t cols;
  bool is_whole;  // all rows are whole pieces
};

template <bool IsWhole, class T>
__device__ __forceinline__ void add_piece(const AddParams<T>& p) {
  const int64_t at = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kPiece<T>, left = p.cols - at;
  if (left <= 0) return;
  T* residual = p.residual + blockIdx.x * p.residual_stride + at;
  const uint4 before = load_piece<IsWhole>(residual, left);
  const uint4 more = load_piece<IsWhole>(p.x + blockIdx.x * p.x_stride + at, left);
  float sum[kPiece<T>], x[kPiece<T>];
  unpack_piece<T>(before, sum);
  unpack_piece<T>(more, x);
#pragma unroll
  for (int32_t i = 0; i < kPiece<T>; ++i) sum[i] += x[i];
  store_piece<IsWhole>(residual, pack_piece<T>(sum), left);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 16) add_kernel(const __grid_constant__ AddParams<T> p) {
  wait_for_previous();
  if (p.is_whole) {
    add_piece<true>(p);
  } else {
    add_piece<false>(p);
  }
}

}  // namespace

void add(Context& context, const AddArgs& args) {
  if (args.x.rows == 0) return;
  dispatch_float(args.residual.dtype, [&]<class T>() {
    launch(add_kernel<T>,
           {.x = static_cast<uint32_t>(args.x.rows), .y = blocks_of(args.x.cols, kThreads * kPiece<T>)},
           kThreads, 0, context.ready(),
           AddParams<T>{static_cast<T*>(args.residual.data), static_cast<const T*>(args.x.data),
                        args.residual.stride, args.x.stride, args.x.cols,
                        has_whole_pieces(args.residual) && has_whole_pieces(args.x)});
  });
}

}  // namespace restkv::cuda
