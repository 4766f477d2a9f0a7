// The host as a device: malloc for its memory, memcpy for its copies, kernels at their launch. make_emulated_backend() is
// CudaBackend with all its kernels on it.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace restkv {

struct EmulatedOptions {
  DType type = DType::kF32;  // of activations, weights and cache: kF32, kBF16, kF16
  int32_t page_slots = 64;
  int64_t workspace_bytes = int64_t{32} << 20;  // of the ops; a small one cuts batches into several launches
  bool is_deterministic = false;
  int64_t memory_bytes = int64_t{4} << 30;  // of the device
};
std::unique_ptr<Backend> make_emulated_backend(const EmulatedOptions& options = {});

}  // namespace restkv
