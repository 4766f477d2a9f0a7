// Turns a failed call into the one DeviceError. Codes are those of cudaError_t, which the runtimes share.
#include "kernels/cuda/device_check.h"

#include <algorithm>
#include <iterator>
#include <string>

#include "kernels/base/device_error.h"

namespace restkv::cuda {
namespace {

struct Running {
  const char* name = nullptr;
  long long rows = 0, cols = 0;
};
thread_local Running running;

struct CodeName {
  int code;
  const char* name;
  bool is_sticky;
};
// What can be met in practice; the numbers are fixed by CUDA's headers. Sticky: the context is lost with all its memory.
constexpr CodeName kCodes[] = {
    {1, "invalid value", false},
    {2, "out of memory", false},
    {35, "the driver is older than the runtime", false},
    {46, "the card is in use by another process", false},
    {98, "the kernel is not in this program", false},
    {100, "no card", false},
    {201, "the context is lost", true},
    {209, "no code for this card", false},
    {214, "uncorrectable memory error", true},
    {700, "illegal address", true},
    {701, "the launch asks for too many resources", false},
    {702, "the launch timed out", true},
    {709, "the context was destroyed", true},
    {710, "an assertion failed", true},
    {714, "hardware stack error", true},
    {715, "illegal instruction", true},
    {716, "misaligned address", true},
    {717, "invalid address space", true},
    {718, "invalid program counter", true},
    {719, "the launch failed", true},
    {999, "unknown error", true},
};

}  // namespace

OpScope::OpScope(const char* name, long long rows, long long cols)
    : previous_name_(running.name), previous_rows_(running.rows), previous_cols_(running.cols) {
  running = {name, rows, cols};
}

OpScope::~OpScope() { running = {previous_name_, previous_rows_, previous_cols_}; }

void throw_device_error(int code, const char* call, const char* file, int line) {
  const auto* known =
      std::find_if(std::begin(kCodes), std::end(kCodes), [&](const CodeName& c) { return c.code == code; });
  const bool is_known = known != std::end(kCodes);
  std::string what = "CUDA error " + std::to_string(code);
  if (is_known) what += std::string(" (") + known->name + ")";
  if (running.name != nullptr) {
    what += std::string(" in ") + running.name + " [" + std::to_string(running.rows) + ", " +
            std::to_string(running.cols) + "]";
  }
  const std::string path = file;
  what += ": " + std::string(call).substr(0, 60) + " at " + path.substr(path.rfind('/') + 1) + ":" +
          std::to_string(line);
  throw DeviceError(what, is_known && known->is_sticky);
}

}  // namespace restkv::cuda
