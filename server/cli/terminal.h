// What the verbs share of the terminal: a progress bar and Ctrl-C.
#pragma once

#include <chrono>
#include <csignal>
#include <cstdint>
#include <string>

#include "kernels/base/status.h"

namespace restkv {

bool stderr_is_terminal();

// Everything that comes on stdin.
Result<std::string> read_standard_input();

// One line on stderr that is redrawn, e.g. "loading weights [######....] 60 % of 93.8 MiB". Nothing is drawn where stderr
// is no terminal, or when the work is done within 200 ms.
class ProgressBar {
 public:
  // `unit`: what is counted; empty: bytes.
  explicit ProgressBar(std::string label, std::string unit = {})
      : label_(std::move(label)), unit_(std::move(unit)) {}
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  void update(int64_t done, int64_t total);

 private:
  std::string label_, unit_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point drawn_{};
};

// While one lives, Ctrl-C only sets a flag. kFirst: the first one (SIGTERM as well), the second ends the program as always;
// kEach: every one, and reads of this thread return.
class InterruptGuard {
 public:
  enum class Mode { kFirst, kEach };
  explicit InterruptGuard(Mode mode = Mode::kFirst);
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
  static bool is_interrupted();
  static void clear();

 private:
  struct sigaction before_int_ {
  }, before_term_{};
};

}  // namespace restkv
