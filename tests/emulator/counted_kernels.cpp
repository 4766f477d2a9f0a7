#include "tests/emulator/counted_kernels.h"

#include <memory>

#include "kernels/cuda/device.h"
#include "kernels/cuda/launch.h"

namespace restkv::cuda {
namespace {

constexpr int32_t kFloats = 4096;

struct TouchParams {
  const float* in;   // [kFloats]
  uint16_t* halves;  // [kFloats]
  float* out;        // [32]
  int32_t step, first;
  Touch touch;
};

__global__ void __launch_bounds__(32) touch_kernel(const __grid_constant__ TouchParams p) {
  auto* shared = shared_memory<float>();
  const auto lane = static_cast<int32_t>(lane_idx());
  float value = 1.0f;
  switch (p.touch) {
    case Touch::kSharedFloat: value = shared[lane * p.step]; break;
    case Touch::kSharedVector: store_vector(shared + lane * p.step, float4{1, 2, 3, 4}); break;
    case Touch::kGlobalFloat: value = p.in[p.first + lane * p.step]; break;
    case Touch::kGlobalHalf: p.halves[lane * p.step] = 1; break;
    case Touch::kAsyncCopy:
      cp_async16(shared + lane * p.step, p.in + lane * 4);
      cp_async_commit();
      cp_async_wait<0>();
      break;
    case Touch::kLdMatrix: {
      uint32_t r[4];
      ldmatrix_x4(r, shared + lane * p.step);
      value = bits_to_f32(r[0] ^ r[3]);
      break;
    }
  }
  p.out[lane] = value;
}

}  // namespace

void run_counted(Touch touch, int32_t step, int32_t first, uint32_t blocks) {
  // Sectors are 32 bytes of the address: where an array begins is part of the count.
  struct alignas(64) Arrays {
    float in[kFloats] = {};
    uint16_t halves[kFloats] = {};
    float out[32] = {};
  };
  const auto arrays = std::make_unique<Arrays>();
  launch(touch_kernel, {.x = blocks}, 32, kFloats * 4, nullptr,
         TouchParams{arrays->in, arrays->halves, arrays->out, step, first, touch});
}

}  // namespace restkv::cuda
