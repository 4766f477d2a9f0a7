// The one exception of the engine: the device (or the memory behind it) failed while an op ran. Caught in one
// place, the engine loop: requests in flight fail, readiness goes false.
#pragma once

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

}  // namespace restkv
