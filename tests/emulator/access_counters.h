// How the memory accesses of kernels would fall on a card's shared-memory banks and on 32-byte sectors of global memory. The
// kernels are compiled with -fsanitize=thread, whose hooks (access_counters.cpp, in place of its runtime) see every access.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace restkv::emulator {

struct AccessCounts {
  int64_t shared_passes = 0,
          shared_least = 0;  // turns of the banks that warps took, and would take without conflicts
  int64_t global_sectors = 0,
          global_least = 0;  // 32-byte sectors that warps touched, and would if they were dense
  struct Place {
    std::string line;  // "matmul.cu:142"
    bool is_shared = false;
    int64_t used = 0, least = 0;
  };
  std::vector<Place> worst;  // places with most above their least, at most six
};
// Of this thread's kernels since the last call.
AccessCounts take_access_counts();

// Of one thread of the running kernel; for what is no plain access: cp.async, ldmatrix.
void count_access(const void* p, uint32_t bytes, const void* place);
// A place in the code that inlines this.
[[gnu::always_inline]] inline const void* here() {
  const void* place;
  asm volatile("lea 0(%%rip), %0" : "=r"(place));
  return place;
}

}  // namespace restkv::emulator
