// out = activation(gate) * up, [T, F]: SwiGLU or GeGLU (tanh). Bound by memory: 3 * T * F values; out may be gate.
// Grid: (rows, columns). A thread owns a piece of 16 bytes.
// Occupancy: glu_kernel 128 x 8.
#include "kernels/cuda/device.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/pieces.h"

namespace restkv::cuda {
namespace {

constexpr uint32_t kThreads = 128;

template <class T>
struct GluParams {
  const T* gate;  // [T, F]
  const T* up;    // [T, F]
  T* out;         // [T, F]
  int64_t gate_stride, up_stride, out_stride;
  int64_t cols;
  bool is_gelu;
  bool is_whole;  // all rows are whole pieces
};

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }
__device__ __forceinline__ float gelu_tanh(float x) {
  constexpr float kRootTwoOverPi = 0.7978845608028654f;
  return 0.5f * x * (1.0f + tanhf(kRootTwoOverPi * (x + 0.044715f * x * x * x)));
}

__device__ __forceinline__ float activated(float x, bool is_gelu) { return is_gelu ? gelu_tanh(x) : silu(x); }

template <bool IsWhole, class T>
__device__ __forceinline__ void glu_piece(const GluParams<T>& p) {
  const int64_t row = blockIdx.x;
  const int64_t at = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kPiece<T>, left = p.cols - at;
  if (left <= 0) return;
  const uint4 gate_piece = load_piece<IsWhole>(p.gate + row * p.gate_stride + at, left);
  const uint4 up_piece = load_piece<IsWhole>(p.up + row * p.up_stride + at, left);
  float gate[kPiece<T>], up[kPiece<T>];
  unpack_piece<T>(gate_piece, gate);
  unpack_piece<T>(up_piece, up);
#pragma unroll
  for (int32_t i = 0; i < kPiece<T>; ++i) gate[i] = activated(gate[i], p.is_gelu) * up[i];
  store_piece<IsWhole>(p.out + row * p.out_stride + at, pack_piece<T>(gate), left);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 8) glu_kernel(const __grid_constant__ GluParams<T> p) {
  wait_for_previous();
  if (p.is_whole) {
    glu_piece<true>(p);
  } else {
    glu_piece<false>(p);
  }
}

}  // namespace

void glu(Context& context, const GluArgs& args) {
  if (args.gate.rows == 0) return;
  const bool is_whole =
      has_whole_pieces(args.gate) && has_whole_pieces(args.up) && has_whole_pieces(args.out);
  dispatch_float(args.gate.dtype, [&]<class T>() {
    launch(glu_kernel<T>,
           {.x = static_cast<uint32_t>(args.gate.rows), .y = blocks_of(args.gate.cols, kThreads * kPiece<T>)},
           kThreads, 0, context.ready(),
           GluParams<T>{static_cast<const T*>(args.gate.data), static_cast<const T*>(args.up.data),
                        static_cast<T*>(args.out.data), args.gate.stride, args.up.stride, args.out.stride,
                        args.gate.cols, args.activation == Activation::kGeluTanh, is_whole});
  });
}

}  // namespace restkv::cuda
