// restkv config check [FILE...] | show | schema | options: what the option table says about YAML files and settings.
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "server/access/access_control.h"
#include "server/cli/verbs.h"

namespace restkv {
namespace {

// What `serve` would refuse of settings that can each be read.
std::vector<std::string> errors_of(Settings settings) {
  if (Status status = check_settings(settings); !status.ok()) return {status.message()};
  if (Status status = resolve_cache_options(settings); !status.ok()) return {status.message()};
  AccessControl access(settings.server.api_key);
  return access.load(std::make_shared<const CacheProfiles>(settings.cache.profiles));
}

// Each file alone, with the environment for its ${VARIABLES} only.
int check_files(const std::vector<std::string>& files) {
  int exit_code = kExitOk;
  for (const std::string& file : files) {
    LoadedSettings loaded;
    apply_yaml_file(file, process_environment(), loaded);
    if (loaded.errors.empty()) {
      for (const std::string& error : errors_of(loaded.settings))
        loaded.errors.push_back(file + ": " + error);
    }
    for (const std::string& error : loaded.errors) std::fprintf(stderr, "restkv: %s\n", error.c_str());
    if (loaded.errors.empty()) {
      std::printf("%s: ok\n", file.c_str());
    } else {
      exit_code = kExitUsage;
    }
  }
  return exit_code;
}

// Sizes and durations in bytes and milliseconds, as the bounds of the table are.
const char* type_name(OptionType type) {
  switch (type) {
    case OptionType::kBool: return "switch";
    case OptionType::kInt: return "count";
    case OptionType::kFloat: return "number";
    case OptionType::kSize: return "size";
    case OptionType::kDuration: return "duration";
    case OptionType::kString: return "text";
    case OptionType::kEnum: return "choice";
    case OptionType::kPath: return "path";
    case OptionType::kIntList: return "list";
  }
  return "";
}

// The option table for programs: tools/make_reference.py writes docs/reference from it.
void print_options() {
  nlohmann::ordered_json options = nlohmann::ordered_json::array();
  for (const Option& option : option_table()) {
    std::vector<std::string_view> verbs;
    for (const VerbInfo& verb : verb_table()) {
      if (option.verbs & verb.bit) verbs.push_back(verb.name);
    }
    nlohmann::ordered_json row = {{"flag", option.flag},
                                  {"aliases", option.aliases},
                                  {"environment", environment_name(option)},
                                  {"section", option.section},
                                  {"key", option.key},
                                  {"type", type_name(option.type)},
                                  {"default", default_text(option)},
                                  {"choices", option.choices},
                                  {"verbs", verbs},
                                  {"help", option.help}};
    if (option.min < option.max) {
      row["min"] = option.min;
      row["max"] = option.max;
    }
    options.push_back(std::move(row));
  }
  std::printf("%s\n", options.dump(1).c_str());
}

}  // namespace

int run_config(const Invocation& invocation) {
  const std::string& action = invocation.arguments[0];
  const std::vector<std::string> files(invocation.arguments.begin() + 1, invocation.arguments.end());
  if (action != "check" && !files.empty()) {
    return fail("unexpected argument '" + files[0] + "'; use --config " + files[0], kExitUsage);
  }
  if (action == "check") {
    // What flags, environment and --config say was checked while they were read.
    const std::vector<std::string> errors = errors_of(invocation.settings());
    for (const std::string& error : errors) std::fprintf(stderr, "restkv: %s\n", error.c_str());
    if (!errors.empty()) return kExitUsage;
    if (files.empty()) std::puts("ok");
    return check_files(files);
  }
  if (action == "show") {
    LoadedSettings shown = invocation.loaded;
    // What is no file and no env:NAME is likely a key, which `serve` refuses.
    if (!check_key_source(shown.settings.server.api_key).ok())
      shown.settings.server.api_key = "(not shown: no file that can be read)";
    std::fputs(settings_yaml(shown).c_str(), stdout);
    return kExitOk;
  }
  if (action == "schema") {
    std::fputs(settings_schema().c_str(), stdout);
    return kExitOk;
  }
  if (action == "options") {
    print_options();
    return kExitOk;
  }
  return fail("unknown action '" + action + "' of config (check, show, schema or options)", kExitUsage);
}

}  // namespace restkv
