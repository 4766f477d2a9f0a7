// The CPU backend, with the threads asked for.
#include "engine/device.h"

#include <string>

#include "kernels/cpu/cpu_backend.h"

namespace restkv {

Result<std::unique_ptr<Backend>> make_backend(const EngineOptions& options) {
  std::unique_ptr<Backend> backend = make_cpu_backend(options.threads);
  if (!backend) {
    std::string targets;
    for (const std::string_view target : cpu_targets())
      targets += (targets.empty() ? "" : ", ") + std::string(target);
    return invalid_argument(
        "RESTKV_CPU_TARGET names a processor level that is not to be had here; there are " + targets);
  }
  return backend;
}

}  // namespace restkv
