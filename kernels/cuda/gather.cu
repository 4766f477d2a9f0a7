// out[t] = scale * table[ids[t]], [T, M]. Bound by memory: 2 * T * M values. Grid: (rows, columns). A thread owns a piece of 16 bytes.
// Occupancy: gather_kernel 128 x 16.
#include "kernels/cuda/device.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/pieces.h"

namespace restkv::cuda {
namespace {

constexpr uint32_t kThreads = 128;

template <class T>
struct GatherParams {
  const T* table;        // [V, M]
  const int32_t* ids;    // [T], ~i: the i-th of `drawn`
  const int32_t* drawn;  // [n] or null
  T* out;                // [T, M]
  int64_t table_stride, out_stride;
  int64_t cols;
  float scale;
  int32_t is_whole;  // all rows are whole pieces; no padding behind it (LaunchList)
};

template <bool IsWhole, class T>
__device__ __forceinline__ void copy_piece(const GatherParams<T>& p) {
  const int64_t at = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kPiece<T>, left = p.cols - at;
  if (left <= 0) return;
  int32_t id = p.ids[blockIdx.x];
  if (id < 0) id = p.drawn[~id];
  uint4 piece = load_piece<IsWhole>(p.table + id * p.table_stride + at, left);
  if (p.scale != 1.0f) {
    float values[kPiece<T>];
    unpack_piece<T>(piece, values);
#pragma unroll
    for (int32_t i = 0; i < kPiece<T>; ++i) values[i] *= p.scale;
    piece = pack_piece<T>(values);
  }
  store_piece<IsWhole>(p.out + blockIdx.x * p.out_stride + at, piece, left);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 16) gather_kernel(const __grid_constant__ GatherParams<T> p) {
  wait_for_previous();
  if (p.is_whole != 0) {
    copy_piece<true>(p);
  } else {
    copy_piece<false>(p);
  }
}

}  // namespace

void gather(Context& context, const GatherArgs& args) {
  if (args.ids.empty()) return;
  CHECK(args.table.dtype == args.out.dtype)
      << "the table was not placed: " << dtype_info(args.table.dtype).name;
  const int32_t* ids = context.upload(args.ids);
  const bool is_whole = has_whole_pieces(args.table) && has_whole_pieces(args.out);
  dispatch_float(args.out.dtype, [&]<class T>() {
    launch(gather_kernel<T>,
           {.x = static_cast<uint32_t>(args.out.rows), .y = blocks_of(args.out.cols, kThreads * kPiece<T>)},
           kThreads, 0, context.ready(),
           GatherParams<T>{static_cast<const T*>(args.table.data), ids,
                           static_cast<const int32_t*>(args.drawn.data), static_cast<T*>(args.out.data),
                           args.table.stride, args.out.stride, args.out.cols, args.scale, is_whole ? 1 : 0});
  });
}

}  // namespace restkv::cuda
