// x = cap * tanh(x / cap), [B, V] f32 logits in place. Bound by memory. Block: 256 threads over 1024 values of one row.
// Occupancy: softcap_kernel 256 x 8.
#include "kernels/cuda/device.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

namespace restkv::cuda {
namespace {

constexpr uint32_t kThreads = 256, kPerBlock = 1024;

struct SoftcapParams {
  float* x;  // [B, V]
  int64_t stride, cols;
  float cap;
};

__global__ void __launch_bounds__(kThreads, 8) softcap_kernel(const __grid_constant__ SoftcapParams p) {
  wait_for_previous();
  float* x = p.x + blockIdx.x * p.stride;
  const int64_t begin = int64_t{blockIdx.y} * kPerBlock;
  const int64_t end = min(p.cols, begin + kPerBlock);
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) x[i] = p.cap * tanhf(x[i] / p.cap);
}

}  // namespace

void softcap(Context& context, const SoftcapArgs& args) {
  if (args.x.rows == 0) return;
  launch(softcap_kernel, {.x = static_cast<uint32_t>(args.x.rows), .y = blocks_of(args.x.cols, kPerBlock)},
         kThreads, 0, context.ready(), SoftcapParams{args.x.f32(), args.x.stride, args.x.cols, args.cap});
}

}  // namespace restkv::cuda
