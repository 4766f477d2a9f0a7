// Only signal-safe work happens in the handler: it stores a flag that readers poll.
#include "server/cli/terminal.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>

#include <unistd.h>

#include "server/config/quantity.h"

namespace restkv {
namespace {

constexpr int kBarCells = 30;
volatile std::sig_atomic_t interrupt_flag = 0;

void on_interrupt(int) { interrupt_flag = 1; }

}  // namespace

bool stderr_is_terminal() {
  static const bool is_terminal = ::isatty(STDERR_FILENO) == 1;
  return is_terminal;
}

Result<std::string> read_standard_input() {
  std::string text;
  char piece[1 << 16];
  for (;;) {
    const ssize_t count = ::read(STDIN_FILENO, piece, sizeof(piece));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      return Status(StatusCode::kFailedPrecondition,
                    std::string("cannot read standard input: ") + std::strerror(errno));
    }
    if (count == 0) return text;
    text.append(piece, static_cast<size_t>(count));
  }
}

ProgressBar::~ProgressBar() {
  if (drawn_ != std::chrono::steady_clock::time_point{}) std::fputs("\r\x1b[K", stderr);
}

void ProgressBar::update(int64_t done, int64_t total) {
  const auto now = std::chrono::steady_clock::now();
  if (!stderr_is_terminal() || total <= 0 || now - start_ < std::chrono::milliseconds(200) ||
      now - drawn_ < std::chrono::milliseconds(50)) {
    return;
  }
  drawn_ = now;
  const double share = std::clamp(static_cast<double>(done) / static_cast<double>(total), 0.0, 1.0);
  const auto filled = static_cast<size_t>(share * kBarCells);
  const std::string bar = std::string(filled, '#') + std::string(kBarCells - filled, '.');
  std::fprintf(stderr, "\r%s [%s] %3.0f %% of %s", label_.c_str(), bar.c_str(), 100 * share,
               (unit_.empty() ? rounded_size_text(total) : std::to_string(total) + " " + unit_).c_str());
}

InterruptGuard::InterruptGuard(Mode mode) {
  interrupt_flag = 0;
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  action.sa_flags = mode == Mode::kFirst ? static_cast<int>(SA_RESETHAND) : 0;
  ::sigaction(SIGINT, &action, &before_int_);
  ::sigaction(SIGTERM, mode == Mode::kFirst ? &action : nullptr, &before_term_);
}

InterruptGuard::~InterruptGuard() {
  ::sigaction(SIGINT, &before_int_, nullptr);
  ::sigaction(SIGTERM, &before_term_, nullptr);
}

void InterruptGuard::clear() { interrupt_flag = 0; }

bool InterruptGuard::is_interrupted() { return interrupt_flag != 0; }

}  // namespace restkv
