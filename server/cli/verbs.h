// The verbs of the program: one file and one row each. A verb gets settings that are checked already.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "server/config/settings_loader.h"

namespace restkv {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailure = 1;
inline constexpr int kExitUsage = 2;          // bad flags, bad configuration
inline constexpr int kExitInterrupted = 130;  // Ctrl-C, as shells count it

struct Invocation {
  LoadedSettings loaded;
  std::vector<FlagValue> flags;        // what `loaded` was made of, beside the file and the environment
  std::vector<std::string> arguments;  // without MODEL, which is settings().model.path
  const Settings& settings() const { return loaded.settings; }
};

struct VerbInfo {
  std::string_view name = {};
  uint32_t bit = 0;                // Verb; 0: takes no options
  std::string_view synopsis = {};  // "MODEL [PROMPT]"
  std::string_view summary = {};   // one line
  std::string_view notes = {};     // more for the verb's own help; may be empty
  bool takes_model = false;        // the first argument is MODEL
  bool is_model_optional = false;
  size_t min_arguments = 0, max_arguments = 0;  // beside MODEL
  int (*run)(const Invocation&) = nullptr;
};

std::span<const VerbInfo> verb_table();
const VerbInfo* find_verb(std::string_view name);
bool takes_option(const VerbInfo& verb, const Option& option);

int run_serve(const Invocation& invocation);
int run_complete(const Invocation& invocation);
int run_chat(const Invocation& invocation);
int run_tokenize(const Invocation& invocation);
int run_logits(const Invocation& invocation);
int run_inspect(const Invocation& invocation);
int run_bench(const Invocation& invocation);
int run_bench_serve(const Invocation& invocation);       // `bench serve`
int run_bench_throughput(const Invocation& invocation);  // `bench throughput`
int run_pull(const Invocation& invocation);
int run_ls(const Invocation& invocation);
int run_rm(const Invocation& invocation);
int run_eval(const Invocation& invocation);
int run_calibrate(const Invocation& invocation);
int run_doctor(const Invocation& invocation);
int run_healthcheck(const Invocation& invocation);
int run_completion(const Invocation& invocation);
int run_config(const Invocation& invocation);
int run_version(const Invocation& invocation);
int run_help(const Invocation& invocation);

// One line "restkv: message" on stderr; returns `exit_code`.
int fail(std::string_view message, int exit_code = kExitFailure);
// The same with the words of a Status.
int fail(const Status& status);

}  // namespace restkv
