// One pass over argv; flags are looked up in the option table.
#include "server/cli/command_line.h"

#include <algorithm>
#include <cstdio>
#include <new>
#include <stdexcept>

#include "server/cli/help_text.h"
#include "server/config/foreign_flags.h"
#include "server/config/logging.h"
#include "server/config/nearest_name.h"

namespace restkv {
namespace {

class Parser {
 public:
  Parser(std::span<const std::string> arguments, CommandLine& line) : arguments_(arguments), line_(line) {}

  // Reads everything behind the verb.
  void read() {
    bool flags_end = false;
    while (next_ < arguments_.size()) {
      const std::string& argument = arguments_[next_++];
      if (flags_end || argument.size() < 2 || argument[0] != '-') {
        line_.invocation.arguments.push_back(argument);
      } else if (argument == "--") {
        flags_end = true;
      } else if (argument == "--help" || argument == "-h") {
        line_.wants_help = true;
      } else {
        read_flag(argument);
      }
    }
  }

  std::vector<FlagValue>& flags() { return flags_; }

 private:
  void read_flag(const std::string& argument) {
    const size_t equals = argument.find('=');
    const std::string spelling = argument.substr(0, equals);
    const std::string name = spelling.substr(spelling.starts_with("--") ? 2 : 1);
    const Option* option = find_flag(name);
    bool is_negated = false;
    if (option == nullptr && (name.starts_with("no-") || name.starts_with("no_"))) {
      option = find_flag(name.substr(3));
      is_negated = option != nullptr && option->type == OptionType::kBool;
      if (!is_negated) option = nullptr;
    }
    if (option == nullptr && read_foreign_flag(argument, spelling, name)) return;
    if (option == nullptr) {
      report_unknown(spelling, name);
    } else if (!takes_option(*line_.verb, *option)) {
      line_.errors.push_back(quote_text(spelling) + " is not a flag of '" + std::string(line_.verb->name) +
                             "'" + takers(*option));
    } else if (option->type == OptionType::kBool) {
      const std::string text = equals == std::string::npos ? "true" : argument.substr(equals + 1);
      if (is_negated && equals != std::string::npos) {
        line_.errors.push_back(quote_text(spelling) + " takes no value");
      } else {
        flags_.push_back({option, spelling, is_negated ? "false" : text});
      }
    } else if (equals != std::string::npos) {
      flags_.push_back({option, spelling, argument.substr(equals + 1)});
    } else if (next_ < arguments_.size() && !arguments_[next_].starts_with("--")) {
      flags_.push_back({option, spelling, arguments_[next_++]});
    } else {
      line_.errors.push_back(spelling + ": needs a value");
    }
  }

  // True: it is a flag of vLLM or llama.cpp, and its value was read.
  bool read_foreign_flag(const std::string& argument, const std::string& spelling, const std::string& name) {
    const bool is_negated =
        find_foreign_flag(name) == nullptr && (name.starts_with("no-") || name.starts_with("no_"));
    const ForeignFlag* flag = find_foreign_flag(is_negated ? name.substr(3) : name);
    if (flag == nullptr || (is_negated && flag->takes_value)) return false;
    std::string value = is_negated ? "false" : "true";
    if (const size_t equals = argument.find('='); equals != std::string::npos) {
      value = argument.substr(equals + 1);
    } else if (flag->takes_value) {
      value = next_ < arguments_.size() && !arguments_[next_].starts_with("--") ? arguments_[next_++] : "";
    }
    if (Status status = check_foreign_flag(*flag, spelling, value); !status.ok())
      line_.errors.push_back(status.message());
    return true;
  }

  void report_unknown(const std::string& spelling, const std::string& name) {
    std::string dashed = name;
    std::replace(dashed.begin(), dashed.end(), '_', '-');
    std::vector<std::string_view> known = {"help"};
    for (const Option& option : option_table()) {
      if (!takes_option(*line_.verb, option)) continue;
      known.push_back(option.flag);
      for (const std::string_view alias : option.aliases) {
        if (alias.size() > 3) known.push_back(alias);
      }
    }
    line_.errors.push_back("unknown flag " + quote_text(spelling) + suggestion(dashed, known, "--"));
  }

  static std::string takers(const Option& option) {
    std::string list;
    for (const VerbInfo& verb : verb_table()) {
      if (option.verbs & verb.bit) list += (list.empty() ? "" : ", ") + std::string(verb.name);
    }
    return " (it belongs to: " + list + ")";
  }

  std::span<const std::string> arguments_;
  CommandLine& line_;
  size_t next_ = 0;
  std::vector<FlagValue> flags_;
};

// Moves MODEL from the arguments to the flags, unless --model gave it.
void take_model(const VerbInfo& verb, std::vector<std::string>& arguments, std::vector<FlagValue>& flags) {
  if (!verb.takes_model || arguments.empty()) return;
  const Option* model = find_flag("model");
  for (const FlagValue& flag : flags) {
    if (flag.option == model) return;
  }
  // `bench latency MODEL`: words of the verb stand before.
  const size_t place = verb.min_arguments;
  if (arguments.size() <= place) return;
  flags.push_back({model, "MODEL", arguments[place]});
  arguments.erase(arguments.begin() + static_cast<int64_t>(place));
}

}  // namespace

CommandLine parse_command_line(std::span<const std::string> arguments, const Environment& environment) {
  CommandLine line;
  if (arguments.empty() || arguments[0] == "--help" || arguments[0] == "-h") {
    line.verb = find_verb("help");
    return line;
  }
  const std::string name = arguments[0] == "--version" ? "version" : arguments[0];
  line.verb = find_verb(name);
  if (line.verb == nullptr) {
    std::vector<std::string_view> known;
    for (const VerbInfo& verb : verb_table()) known.push_back(verb.name);
    line.errors.push_back("unknown command " + quote_text(name) + suggestion(name, known));
    return line;
  }
  Parser parser(arguments.subspan(1), line);
  parser.read();
  if (line.wants_help) return line;

  std::vector<std::string>& rest = line.invocation.arguments;
  take_model(*line.verb, rest, parser.flags());
  if (rest.size() > line.verb->max_arguments) {
    line.errors.push_back("unexpected argument " + quote_text(rest[line.verb->max_arguments]));
  } else if (rest.size() < line.verb->min_arguments) {
    line.errors.push_back("an argument is missing: restkv " + std::string(line.verb->name) + " " +
                          std::string(line.verb->synopsis));
  }
  // `config` reports the errors of its files itself.
  line.invocation.loaded = load_settings(static_cast<Verb>(line.verb->bit), parser.flags(), environment);
  line.invocation.flags = parser.flags();
  LoadedSettings& loaded = line.invocation.loaded;
  if (line.verb->bit == kDoctor) return line;  // it reports them itself, as one of its findings
  line.errors.insert(line.errors.end(), loaded.errors.begin(), loaded.errors.end());
  if (find_flag("budget")->verbs & line.verb->bit) {
    if (Status status = resolve_cache_options(loaded.settings); !status.ok())
      line.errors.push_back(status.message());
  }
  if (line.verb->bit == kServe) {
    if (Status status = check_settings(loaded.settings); !status.ok())
      line.errors.push_back(status.message());
  }
  if (line.errors.empty() && line.verb->takes_model && !line.verb->is_model_optional &&
      loaded.settings.model.path.empty()) {
    line.errors.push_back("MODEL is missing: a folder, a .gguf file, ORG/REPO[:QUANT] or demo (restkv " +
                          std::string(line.verb->name) + " " + std::string(line.verb->synopsis) + ")");
  }
  return line;
}

int run_command_line(std::span<const std::string> arguments) {
  const CommandLine line = parse_command_line(arguments, process_environment());
  for (const std::string& error : line.errors) std::fprintf(stderr, "restkv: %s\n", error.c_str());
  if (!line.errors.empty()) {
    std::fprintf(stderr, "try: restkv help%s%s\n", line.verb ? " " : "",
                 line.verb ? std::string(line.verb->name).c_str() : "");
    return kExitUsage;
  }
  int exit_code = kExitOk;
  if (line.wants_help) {
    std::fputs(help_of_verb(*line.verb).c_str(), stdout);
  } else {
    try {
      exit_code = line.verb->run(line.invocation);
    } catch (const std::runtime_error& error) {  // the device, the memory behind it, no more threads
      return fail(error.what());
    } catch (const std::bad_alloc&) {
      return fail("out of memory");
    }
  }
  // What was asked for and is not there must not look like success: `restkv inspect M >FILE` on a full disk.
  const bool is_written = std::fflush(stdout) == 0 && std::ferror(stdout) == 0;
  if (exit_code == kExitOk && !is_written && line.verb->bit != kServe)
    return fail("cannot write all of the output to standard output");
  return exit_code;
}

int fail(std::string_view message, int exit_code) {
  if (logs_as_json()) {
    log_event(LogLevel::kError, message);
    return exit_code;
  }
  std::string line(message);
  for (char& c : line) {  // names out of files must not steer the terminal
    if (static_cast<unsigned char>(c) < ' ' || c == 0x7f) c = '?';
  }
  std::fprintf(stderr, "restkv: %s\n", line.c_str());
  return exit_code;
}

int fail(const Status& status) { return fail(status.message()); }

}  // namespace restkv
