// argv to a verb, its arguments and its settings, by the option table. Every error of one command line is reported, not
// only the first.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "server/cli/verbs.h"

namespace restkv {

struct CommandLine {
  const VerbInfo* verb = nullptr;  // null: errors say why
  bool wants_help = false;
  Invocation invocation;
  std::vector<std::string> errors;
};

// `arguments`: argv without the program's name. Flags are --name value, --name=value, -x value, for switches also
// --name, --no-name; "--" ends them. The last of several wins. `_` in a name is read as `-`.
CommandLine parse_command_line(std::span<const std::string> arguments, const Environment& environment);

// The program: parse, report or run. Returns the exit code.
int run_command_line(std::span<const std::string> arguments);

}  // namespace restkv
