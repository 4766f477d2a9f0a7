// CUDA_CHECK(call): the one way a call of the device's runtime is made. What is not 0 becomes the one DeviceError of
// kernels/base/device_error.h, with the call, the place, and the op that was running: its shapes and its layer.
#pragma once

namespace restkv::cuda {

struct OpShape {
  long long rows = 0, cols = 0;
};

// What runs on this thread, for messages.
struct RunningOp {
  const char* name = nullptr;  // outlives the scope
  OpShape in = {}, out = {};   // of its first and last tensors; 0 x 0: it has none
  long long layer = -1;        // -1: of no layer
};

RunningOp running_op();

// Set by the backend around each do_op(); nests. An error that shows only later, while a call without shapes waits, names
// the op before it as well.
class OpScope {
 public:
  explicit OpScope(const RunningOp& op);
  ~OpScope();
  OpScope(const OpScope&) = delete;
  OpScope& operator=(const OpScope&) = delete;

 private:
  RunningOp previous_;
};

// Throws DeviceError. `code`: a cudaError_t.
[[noreturn]] void throw_device_error(int code, const char* call, const char* file, int line);

}  // namespace restkv::cuda

#define CUDA_CHECK(call)                                                          \
  do {                                                                            \
    if (const int restkv_code = static_cast<int>(call); restkv_code != 0)         \
      ::restkv::cuda::throw_device_error(restkv_code, #call, __FILE__, __LINE__); \
  } while (false)
