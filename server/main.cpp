// The program restkv: argv goes to the verbs (server/cli).
#include <string>
#include <vector>

#include "server/cli/command_line.h"

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  return restkv::run_command_line(arguments);
}
