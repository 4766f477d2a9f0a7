// Every value of a plain tensor becomes 0, [rows, cols] of any type. Bound by memory. Block: 256 threads over one row.
// Occupancy: zero_kernel 256 x 8.
#include "kernels/cuda/device.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

namespace restkv::cuda {
namespace {

constexpr uint32_t kThreads = 256;

struct ZeroParams {
  unsigned char* data;  // [rows] pieces of row_bytes, stride_bytes apart
  int64_t row_bytes, stride_bytes;
};

__global__ void __launch_bounds__(kThreads, 8) zero_kernel(const __grid_constant__ ZeroParams p) {
  wait_for_previous();
  unsigned char* row = p.data + blockIdx.x * p.stride_bytes;
  for (int64_t i = threadIdx.x; i < p.row_bytes; i += kThreads) row[i] = 0;
}

}  // namespace

void zero(Context& context, const Tensor& tensor) {
  if (tensor.rows == 0) return;
  launch(zero_kernel, {.x = static_cast<uint32_t>(tensor.rows)}, kThreads, 0, context.ready(),
         ZeroParams{static_cast<unsigned char*>(tensor.data), bytes_of(tensor.dtype, tensor.cols),
                    bytes_of(tensor.dtype, tensor.stride)});
}

}  // namespace restkv::cuda
