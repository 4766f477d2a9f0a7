// The one exception of the engine: the device (or the memory behind it) failed. Caught in the engine loop, where requests in
// flight fail and readiness goes false, and at the doors of what runs without one (engine/README.md, invariant 6).
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace restkv {

class DeviceError : public std::runtime_error {
 public:
  // `is_sticky`: the device is lost for this process (illegal address, hang); otherwise the next step may
  // work.
  DeviceError(const std::string& what, bool is_sticky) : std::runtime_error(what), is_sticky_(is_sticky) {}
  bool is_sticky() const { return is_sticky_; }

 private:
  bool is_sticky_;
};

// Memory that the plan counted on is not there: another process took it, or a limit of this one is below the machine's.
class OutOfMemory : public DeviceError {
 public:
  // `what` the `bytes` were for.
  OutOfMemory(const std::string& what, int64_t bytes)
      : DeviceError(
            "no memory is left for " + what + " (" + std::to_string((bytes + (1 << 20) - 1) >> 20) + " MiB)",
            /*is_sticky=*/false) {}
};

}  // namespace restkv
