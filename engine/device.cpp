// The CPU backend, with the threads asked for.
#include "engine/device.h"

#include <string>

#include "engine/host_memory.h"
#include "kernels/cpu/cpu_backend.h"

namespace restkv {

Result<std::unique_ptr<Backend>> make_backend(const EngineOptions& options) {
  if (options.backend_maker) return options.backend_maker();
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

int64_t available_memory(Backend& backend) {
  const std::optional<int64_t> free = backend.free_bytes();
  return free ? *free : available_host_memory();
}

}  // namespace restkv
