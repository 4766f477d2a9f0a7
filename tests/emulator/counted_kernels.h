// Kernels whose accesses are known by counting on one's fingers, for access_counters_test. One warp each; every thread also
// writes one float, densely: 4 sectors.
#pragma once

#include <cstdint>

namespace restkv::cuda {

enum class Touch : uint8_t {
  kSharedFloat,   // reads shared float lane * step
  kSharedVector,  // writes 16 bytes at shared float lane * step
  kGlobalFloat,   // reads global float first + lane * step
  kGlobalHalf,    // writes global 16-bit value lane * step
  kAsyncCopy,     // cp.async of 16 bytes, dense in global memory, to shared float lane * step
  kLdMatrix,      // ldmatrix x4, rows at shared float lane * step
};

// The kernel, once for each block.
void run_counted(Touch touch, int32_t step, int32_t first = 0, uint32_t blocks = 1);

}  // namespace restkv::cuda
