// What launchers and runtimes name without a compiler for devices.
#pragma once

#include <cstdint>

namespace restkv::cuda {

// Work of one stream runs in order. On a card a cudaStream_t; the emulator runs a kernel at its launch.
using Stream = void*;

struct Grid {
  uint32_t x = 1;  // up to 2^31 - 1
  uint32_t y = 1;  // up to 65535
  uint32_t z = 1;
};

}  // namespace restkv::cuda
