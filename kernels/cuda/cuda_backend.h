// The backend of kernels/backend.h on a device: each op is a launcher of ops.h. The device is behind Runtime, so that the
// emulated one runs all of this too.
#pragma once

#include <memory>

#include "kernels/backend.h"
#include "kernels/cuda/runtime.h"

namespace restkv::cuda {

struct BackendOptions {
  DType type = DType::kBF16;  // of activations, weights and cache: kBF16, kF16; kF32 for tests
  int32_t page_slots = 64;
  int64_t workspace_bytes = int64_t{64} << 20;  // for the ops' own use
  int64_t staging_bytes = int64_t{32} << 20;    // tables and numbers of a step, on both sides
  bool is_deterministic = false;                // a row's result does not depend on the rows beside it
  bool use_graphs = true;                       // of the launches of a step (Context::begin_step)
};

// Head dims are multiples of 8 up to here.
inline constexpr int32_t kMaxHeadDim = 256;

// Throws DeviceError where the device refuses.
std::unique_ptr<Backend> make_backend(std::unique_ptr<Runtime> runtime, const BackendOptions& options);

}  // namespace restkv::cuda
