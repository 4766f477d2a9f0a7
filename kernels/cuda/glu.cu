// out = activation(gate) * up, [T, F]: SwiGLU or GeGLU (tanh). Bound by memory: 3 * T * F values; out may be gate.
// Block: 256 threads over 1024 values of one row.
#include "kernels/cuda/device.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

namespace restkv::cuda {
namespace {

constexpr uint32_t kThreads = 256, kPerBlock = 1024;

template <class T>
struct GluParams {
  const T* gate;  // [T, F]
  const T* up;    // [T, F]
  T* out;         // [T, F]
  int64_t gate_stride, up_stride, out_stride;
  int64_t cols;
  bool is_gelu;
};

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }
__device__ __forceinline__ float gelu_tanh(float x) {
  constexpr float kRootTwoOverPi = 0.7978845608028654f;
  return 0.5f * x * (1.0f + tanhf(kRootTwoOverPi * (x + 0.044715f * x * x * x)));
}

template <class T>
__global__ void __launch_bounds__(kThreads) glu_kernel(const __grid_constant__ GluParams<T> p) {
  const int64_t row = blockIdx.x;
  const int64_t begin = int64_t{blockIdx.y} * kPerBlock;
  const int64_t end = min(p.cols, begin + kPerBlock);
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const float g = to_f32(p.gate[row * p.gate_stride + i]);
    const float u = to_f32(p.up[row * p.up_stride + i]);
    p.out[row * p.out_stride + i] = from_f32<T>((p.is_gelu ? gelu_tanh(g) : silu(g)) * u);
  }
}

}  // namespace

void glu(Context& context, const GluArgs& args) {
  if (args.gate.rows == 0) return;
  dispatch_float(args.gate.dtype, [&]<class T>() {
    launch(glu_kernel<T>,
           {.x = static_cast<uint32_t>(args.gate.rows), .y = blocks_of(args.gate.cols, kPerBlock)}, kThreads,
           0, context.ready(),
           GluParams<T>{static_cast<const T*>(args.gate.data), static_cast<const T*>(args.up.data),
                        static_cast<T*>(args.out.data), args.gate.stride, args.up.stride, args.out.stride,
                        args.gate.cols, args.activation == Activation::kGeluTanh});
  });
}

}  // namespace restkv::cuda
