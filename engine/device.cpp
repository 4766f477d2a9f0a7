// The CPU backend, with the threads asked for.
#include "engine/device.h"

#include "kernels/cpu/cpu_backend.h"

namespace restkv {

std::unique_ptr<Backend> make_backend(const EngineOptions& options) {
  return cpu::make_cpu_backend(options.threads);
}

}  // namespace restkv
