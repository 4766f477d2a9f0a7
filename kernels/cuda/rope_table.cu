// table[t] = (cos | sin)(positions[t] * inv_freq) * factor, [T, D] f32; the angle is an f32 product. Once a step, small.
// Block: 128 threads over one row.
// Occupancy: rope_table_kernel 128 x 16.
#include "kernels/cuda/device.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

namespace restkv::cuda {
namespace {

constexpr uint32_t kThreads = 128;

struct RopeTableParams {
  const int32_t* positions;  // [T]
  const float* inv_freq;     // [D/2]
  float* out;                // [T, D]
  int64_t stride;
  int32_t half;
  float factor;
};

__global__ void __launch_bounds__(kThreads, 16) rope_table_kernel(const __grid_constant__ RopeTableParams p) {
  wait_for_previous();
  float* out = p.out + blockIdx.x * p.stride;
  const auto position = static_cast<float>(p.positions[blockIdx.x]);
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < p.half; i += static_cast<int32_t>(kThreads)) {
    const float angle = position * p.inv_freq[i];
    out[i] = cosf(angle) * p.factor;
    out[p.half + i] = sinf(angle) * p.factor;
  }
}

}  // namespace

void rope_table(Context& context, const RopeTableArgs& args) {
  if (args.positions.empty()) return;
  const int32_t* positions = context.upload(args.positions);
  const float* inv_freq = context.upload(args.inv_freq);
  launch(rope_table_kernel, {.x = static_cast<uint32_t>(args.out.rows)}, kThreads, 0, context.ready(),
         RopeTableParams{positions, inv_freq, args.out.f32(), args.out.stride,
                         static_cast<int32_t>(args.inv_freq.size()), args.attention_factor});
}

}  // namespace restkv::cuda
