// Turns a failed call into the one DeviceError. Codes are those of cudaError_t, which the runtimes share.
#include "kernels/cuda/device_check.h"

#include <algorithm>
#include <iterator>
#include <string>

#include "kernels/base/device_error.h"

namespace restkv::cuda {
namespace {

thread_local RunningOp running, finished;

bool has_shape(const RunningOp& op) { return op.in.rows != 0 || op.in.cols != 0; }

// " in matmul [4, 64] -> [4, 256] of layer 3"
std::string text(const char* word, const RunningOp& op) {
  const auto shape = [](const OpShape& s) {
    return " [" + std::to_string(s.rows) + ", " + std::to_string(s.cols) + "]";
  };
  std::string what = std::string(word) + op.name;
  if (has_shape(op)) what += shape(op.in);
  if (op.out.rows != 0 || op.out.cols != 0) what += " ->" + shape(op.out);
  if (op.layer >= 0) what += " of layer " + std::to_string(op.layer);
  return what;
}

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
    {220, "uncorrectable NVLink error", true},
    {221, "the driver has no compiler for this card's code", false},
    {222, "the driver is older than this program's code for the card", false},
    {226, "contained error", true},
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
    {721, "tensor memory was not released", true},
    {810, "the server of MPS ended this client", true},
    {999, "unknown error", true},
};

}  // namespace

RunningOp running_op() { return running; }

OpScope::OpScope(const RunningOp& op) : previous_(running) { running = op; }

OpScope::~OpScope() {
  if (has_shape(running)) finished = running;
  running = previous_;
}

void throw_device_error(int code, const char* call, const char* file, int line) {
  const auto* known =
      std::find_if(std::begin(kCodes), std::end(kCodes), [&](const CodeName& c) { return c.code == code; });
  const bool is_known = known != std::end(kCodes);
  std::string what = "CUDA error " + std::to_string(code);
  if (is_known) what += std::string(" (") + known->name + ")";
  if (running.name != nullptr) {
    what += text(" in ", running);
    if (!has_shape(running) && finished.name != nullptr) what += text(", after ", finished);
  }
  const std::string path = file;
  what += ": " + std::string(call).substr(0, 60) + " at " + path.substr(path.rfind('/') + 1) + ":" +
          std::to_string(line);
  throw DeviceError(what, is_known && known->is_sticky);
}

}  // namespace restkv::cuda
