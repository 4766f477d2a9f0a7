// out = activation(gate) * up, [T, F]: SwiGLU or GeGLU (tanh). Bound by memory: 3 * T * F values; out may be gate.
// Block: 256 threads over 1024 values of one row, four neighbours each where rows are aligned to that.
// Occupancy: glu_kernel 256 x 6.
#include "kernels/cuda/device.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/elements.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

namespace restkv::cuda {
namespace {

constexpr uint32_t kThreads = 256, kPerBlock = 1024;
static_assert(kPerBlock == 4 * kThreads);

template <class T>
struct GluParams {
  const T* gate;  // [T, F]
  const T* up;    // [T, F]
  T* out;         // [T, F]
  int64_t gate_stride, up_stride, out_stride;
  int64_t cols;
  bool is_gelu;
  bool is_aligned;  // rows begin at multiples of four values and are whole ones
};

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }
__device__ __forceinline__ float gelu_tanh(float x) {
  constexpr float kRootTwoOverPi = 0.7978845608028654f;
  return 0.5f * x * (1.0f + tanhf(kRootTwoOverPi * (x + 0.044715f * x * x * x)));
}

__device__ __forceinline__ float activated(float x, bool is_gelu) { return is_gelu ? gelu_tanh(x) : silu(x); }

template <class T>
constexpr DType kTypeOf = std::is_same_v<T, float> ? DType::kF32
                          : std::is_same_v<T, f16> ? DType::kF16
                                                   : DType::kBF16;

template <class T>
__global__ void __launch_bounds__(kThreads, 6) glu_kernel(const __grid_constant__ GluParams<T> p) {
  const int64_t row = blockIdx.x;
  const int64_t begin = int64_t{blockIdx.y} * kPerBlock;
  const int64_t end = min(p.cols, begin + kPerBlock);
  const T* gate = p.gate + row * p.gate_stride;
  const T* up = p.up + row * p.up_stride;
  T* out = p.out + row * p.out_stride;
  if (p.is_aligned) {
    const int64_t i = begin + int64_t{threadIdx.x} * 4;
    if (i >= end) return;
    const float4 g = load_four(reinterpret_cast<const std::byte*>(gate + i), kTypeOf<T>);
    const float4 u = load_four(reinterpret_cast<const std::byte*>(up + i), kTypeOf<T>);
    store_four(reinterpret_cast<std::byte*>(out + i), kTypeOf<T>,
               float4{activated(g.x, p.is_gelu) * u.x, activated(g.y, p.is_gelu) * u.y,
                      activated(g.z, p.is_gelu) * u.z, activated(g.w, p.is_gelu) * u.w});
    return;
  }
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads)
    out[i] = from_f32<T>(activated(to_f32(gate[i]), p.is_gelu) * to_f32(up[i]));
}

}  // namespace

void glu(Context& context, const GluArgs& args) {
  if (args.gate.rows == 0) return;
  const auto is_aligned = [](const void* data, DType type, int64_t stride) {
    return reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(bytes_of(type, 4)) == 0 &&
           stride % 4 == 0;
  };
  const bool is_whole = args.gate.cols % 4 == 0 &&
                        is_aligned(args.gate.data, args.gate.dtype, args.gate.stride) &&
                        is_aligned(args.up.data, args.up.dtype, args.up.stride) &&
                        is_aligned(args.out.data, args.out.dtype, args.out.stride);
  dispatch_float(args.gate.dtype, [&]<class T>() {
    launch(glu_kernel<T>,
           {.x = static_cast<uint32_t>(args.gate.rows), .y = blocks_of(args.gate.cols, kPerBlock)}, kThreads,
           0, context.ready(),
           GluParams<T>{static_cast<const T*>(args.gate.data), static_cast<const T*>(args.up.data),
                        static_cast<T*>(args.out.data), args.gate.stride, args.up.stride, args.out.stride,
                        args.gate.cols, args.activation == Activation::kGeluTanh, is_whole});
  });
}

}  // namespace restkv::cuda
