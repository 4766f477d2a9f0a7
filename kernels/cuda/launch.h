// launch(kernel, grid, block, smem, stream, params): the one way to start a kernel, for nvcc and for the emulator.
//   template <class T> __global__ void __launch_bounds__(256) foo_kernel(const __grid_constant__ FooParams p);
//   launch(foo_kernel<T>, {.x = blocks}, 256, sizeof(FooShared), stream, params);
// A kernel takes exactly one params struct by value: numbers and device pointers, each pointer with its shape. Blocks are
// one-dimensional, a multiple of 32 threads; all shared memory is dynamic (device.h: shared_memory<T>()). A launch on
// a stream with a list is kept there and starts later (launch_list.h). One that fails is a DeviceError (device_check.h); on the emulator a kernel that misbehaves is an EmulatorError.
#pragma once

#include <cstdint>

#include "kernels/cuda/device_check.h"
#include "kernels/cuda/launch_list.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include <emulator/emulator.h>
#endif

namespace restkv::cuda {

#if defined(__CUDACC__)

template <class Params>
void launch(void (*kernel)(Params), Grid grid, uint32_t block, uint32_t smem, Stream stream,
            const Params& params) {
  const auto* function = reinterpret_cast<const void*>(kernel);
  if (smem > (48u << 10)) {
    CUDA_CHECK(
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(smem)));
  }
  if (stream.list != nullptr) return stream.list->add(function, grid, block, smem, params, nullptr);
  start_kernel({function, grid, block, smem, 0, sizeof params, nullptr}, &params, stream);
}

#else

// A kernel, when its turn comes.
template <class Params>
void run_on_emulator(const KernelLaunch& launch, const void* params) {
  struct Call {
    void (*kernel)(Params);
    const Params* params;
  } call = {reinterpret_cast<void (*)(Params)>(const_cast<void*>(launch.kernel)),
            static_cast<const Params*>(params)};
  emulator::run_grid(
      {launch.grid.x, launch.grid.y, launch.grid.z}, launch.block, launch.smem,
      [](const void* c) __attribute__((no_sanitize("thread"))) {  // no access of the kernel
        const auto* one = static_cast<const Call*>(c);
        one->kernel(*one->params);
      },
      &call);
}

template <class Params>
void launch(void (*kernel)(Params), Grid grid, uint32_t block, uint32_t smem, Stream stream,
            const Params& params) {
  const auto* function = reinterpret_cast<const void*>(kernel);
  if (stream.list != nullptr)
    return stream.list->add(function, grid, block, smem, params, run_on_emulator<Params>);
  CUDA_CHECK(emulator::next_call_error());
  run_on_emulator<Params>({function, grid, block, smem, 0, sizeof params, nullptr}, &params);
}

#endif

}  // namespace restkv::cuda
