// The CPU backend: complete and always built; the readable specification of the ops and the oracle of the GPU tests.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "kernels/backend.h"

namespace restkv {

// threads 0: the physical cores this process may use. target: one of cpu_targets(), or empty: what the environment
// variable RESTKV_CPU_TARGET names (for tests and support cases), else the best the processor has. Null if the
// processor or the build does not have the target. Throws OutOfMemory: no address space for the threads' work space.
std::unique_ptr<Backend> make_cpu_backend(int threads, std::string_view target = {});

// Processor levels this build and this processor have, best first: "avx3" (AVX-512), "avx2", "plain".
std::vector<std::string_view> cpu_targets();

}  // namespace restkv
