// The program restkv: argv goes to the verbs (server/cli).
#include <fcntl.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "server/cli/command_line.h"

namespace {

// Where a shell has closed one of them, the next file or socket takes its number and gets what is written to it; a library has
// done so before main() already. What is inherited is never close-on-exec, so the others are known by that: they become
// /dev/null, and the program begins again.
void open_standard_streams(char** argv) {
  bool is_changed = false;
  for (int fd = 0; fd <= 2; ++fd) {
    const int flags = ::fcntl(fd, F_GETFD);
    if (flags != -1 && (flags & FD_CLOEXEC) == 0) continue;
    ::close(fd);
    if (::open("/dev/null", O_RDWR) != fd) return;
    is_changed = true;
  }
  if (is_changed) ::execv("/proc/self/exe", argv);
}

}  // namespace

int main(int argc, char** argv) {
  open_standard_streams(argv);
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  return restkv::run_command_line(arguments);
}
