// out[t] = scale * table[ids[t]], [T, M]. Bound by memory: 2 * T * M values. Block: 256 threads over 1024 values of a row.
// Occupancy: gather_kernel 256 x 8.
#include "kernels/cuda/device.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

namespace restkv::cuda {
namespace {

constexpr uint32_t kThreads = 256, kPerBlock = 1024;

template <class T>
struct GatherParams {
  const T* table;        // [V, M]
  const int32_t* ids;    // [T], ~i: the i-th of `drawn`
  const int32_t* drawn;  // [n] or null
  T* out;                // [T, M]
  int64_t table_stride, out_stride;
  int64_t cols;
  float scale;
};

template <class T>
__global__ void __launch_bounds__(kThreads, 8) gather_kernel(const __grid_constant__ GatherParams<T> p) {
  int32_t id = p.ids[blockIdx.x];
  if (id < 0) id = p.drawn[~id];
  const T* from = p.table + id * p.table_stride;
  T* to = p.out + blockIdx.x * p.out_stride;
  const int64_t begin = int64_t{blockIdx.y} * kPerBlock;
  const int64_t end = min(p.cols, begin + kPerBlock);
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads)
    to[i] = p.scale == 1.0f ? from[i] : from_f32<T>(to_f32(from[i]) * p.scale);
}

}  // namespace

void gather(Context& context, const GatherArgs& args) {
  if (args.ids.empty()) return;
  CHECK(args.table.dtype == args.out.dtype)
      << "the table was not placed: " << dtype_info(args.table.dtype).name;
  const int32_t* ids = context.upload(args.ids);
  dispatch_float(args.out.dtype, [&]<class T>() {
    launch(gather_kernel<T>,
           {.x = static_cast<uint32_t>(args.out.rows), .y = blocks_of(args.out.cols, kPerBlock)}, kThreads, 0,
           context.ready(),
           GatherParams<T>{static_cast<const T*>(args.table.data), ids,
                           static_cast<const int32_t*>(args.drawn.data), static_cast<T*>(args.out.data),
                           args.table.stride, args.out.stride, args.out.cols, args.scale});
  });
}

}  // namespace restkv::cuda
