// What launchers and runtimes name without a compiler for devices.
#pragma once

#include <cstddef>
#include <cstdint>

namespace restkv::cuda {

class LaunchList;

// Where a launch goes: now to the work of the process, which runs in order, or to a list that is launched later as one.
struct Stream {
  void* handle = nullptr;      // on a card a cudaStream_t; the emulator runs a kernel at its launch
  LaunchList* list = nullptr;  // null: now
  bool overlaps = false;  // a kernel may take its places while the one before it runs (wait_for_previous)

  Stream() = default;
  Stream(std::nullptr_t) {}  // NOLINT: the emulator's
  Stream(void* stream, LaunchList* later = nullptr)
      : handle(stream), list(later) {}  // NOLINT: a handle is one
};

struct Grid {
  uint32_t x = 1;  // up to 2^31 - 1
  uint32_t y = 1;  // up to 65535
  uint32_t z = 1;
  bool operator==(const Grid&) const = default;
};

// Whether `blocks` blocks with so much shared memory run on one multiprocessor of sm_80: 164 KiB, of which each block takes 1
// KiB more than it asked for. What the opening comment of a kernel says is asserted with it.
constexpr bool fits_multiprocessor(size_t shared_bytes, size_t blocks) {
  return blocks * (shared_bytes + 1024) <= (size_t{164} << 10);
}

}  // namespace restkv::cuda
