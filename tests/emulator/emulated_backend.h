// The host as a device: malloc for its memory, memcpy for its copies, the emulator for its kernels, all of it done when
// emulator::Options::timing says. make_emulated_backend() is CudaBackend with all its kernels on it.
#pragma once

#include <atomic>
#include <memory>

#include "emulator/emulator.h"
#include "kernels/backend.h"

namespace restkv {

// What the backend asked of its device.
struct DeviceCounts {
  std::atomic<int64_t> made{0}, launched{0}, piecewise{0};  // graphs; launches of one; lists launched without
  std::atomic<int64_t> products{0};                         // of the library
  std::atomic<int64_t> waits{0};                            // of the host, for what it had enqueued
};

struct EmulatedOptions {
  DType type = DType::kF32;  // of activations, weights and cache: kF32, kBF16, kF16
  int32_t page_slots = 64;
  int64_t workspace_bytes = int64_t{32} << 20;  // of the ops; a small one cuts batches into several launches
  int64_t staging_bytes = int64_t{8} << 20;
  bool is_deterministic = false;
  bool use_graphs = true;
  bool refuses_graphs = false;    // making one fails, and the device lives on
  bool refuses_launches = false;  // the same of launching one
  bool has_library = false;       // products of 16-bit types as a vendor's library gives them, by plain loops
  DeviceCounts* counts = nullptr;           // counted here, if given
  int64_t memory_bytes = int64_t{4} << 30;  // of the device
  int32_t num_multiprocessors = 4;          // that ops cut their work for
  emulator::Card card = emulator::default_card();
  int32_t max_shared_bytes = 0;  // of a block; 0: the card's
};
std::unique_ptr<Backend> make_emulated_backend(const EmulatedOptions& options = {});

}  // namespace restkv
