// A backend for tests: attention and the eviction ops run the card's kernels on the emulator, the others the CPU backend's
// code. Memory is the host's.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/backend.h"

namespace restkv {

struct EmulatedOptions {
  int32_t page_slots = 64;
  int64_t workspace_bytes = int64_t{32} << 20;  // of the ops; a small one cuts batches into several launches
};
std::unique_ptr<Backend> make_emulated_backend(const EmulatedOptions& options = {});

}  // namespace restkv
