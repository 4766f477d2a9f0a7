// CUDA_CHECK(call): the one way a call of the device's runtime is made. What is not 0 becomes the one DeviceError of
// kernels/base/device_error.h, with the call, the place, and the op that was running.
#pragma once

namespace restkv::cuda {

// The op that runs on this thread, for messages. Set by the backend around each do_op(); nests.
class OpScope {
 public:
  // `shape`: rows x cols of its first tensor. `name` outlives the scope.
  OpScope(const char* name, long long rows, long long cols);
  ~OpScope();
  OpScope(const OpScope&) = delete;
  OpScope& operator=(const OpScope&) = delete;

 private:
  const char* previous_name_;
  long long previous_rows_, previous_cols_;
};

// Throws DeviceError. `code`: a cudaError_t.
[[noreturn]] void throw_device_error(int code, const char* call, const char* file, int line);

}  // namespace restkv::cuda

#define CUDA_CHECK(call)                                                          \
  do {                                                                            \
    if (const int restkv_code = static_cast<int>(call); restkv_code != 0)         \
      ::restkv::cuda::throw_device_error(restkv_code, #call, __FILE__, __LINE__); \
  } while (false)
