// Settings from all sources: flags over environment over YAML over the defaults, each value checked by its
// row of the option table. All errors are collected, each with its place:
//   configs/serve.yaml:4:3: unknown key 'prot' in server (did you mean 'port'?)
//   RESTKV_PORT: 70000 is out of bounds (0 to 65535)
//   --port: 70000 is out of bounds (0 to 65535)
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/config/options.h"

namespace restkv {

enum class SettingSource : uint8_t { kDefault, kYaml, kEnvironment, kFlag };

// One flag as given: "--port 8000" is {row of port, "--port", "8000"}.
struct FlagValue {
  const Option* option = nullptr;
  std::string spelling;
  std::string text;
};

// Value of an environment variable; an empty one counts as absent.
using Environment = std::function<std::optional<std::string>(const std::string& name)>;
Environment process_environment();

struct LoadedSettings {
  Settings settings;
  std::vector<SettingSource> sources;  // [option_table().size()]
  std::vector<std::string> errors;     // empty: all is well
};

// `verb`: the environment is read for the options it takes. The YAML file is --config's or RESTKV_CONFIG's,
// if any.
LoadedSettings load_settings(Verb verb, const std::vector<FlagValue>& flags, const Environment& environment);

// One YAML text over `loaded`; `name` stands in the errors.
void apply_yaml(std::string_view text, const std::string& name, const Environment& environment,
                LoadedSettings& loaded);

// The same for a file; one that cannot be read is an error in `loaded`.
void apply_yaml_file(const std::string& path, const Environment& environment, LoadedSettings& loaded);

// "${NAME}" and "${NAME:-default}" replaced; "$${" is a literal "${". Error: NAME is not set, or no closing
// brace.
Result<std::string> expand_variables(std::string_view text, const Environment& environment);

// A text as a quoted YAML scalar.
std::string yaml_text(const std::string& text);
// The settings as a YAML file that gives them again, each with its source as a comment (`config show`).
std::string settings_yaml(const LoadedSettings& loaded);
// JSON Schema (draft 2020-12) of the YAML file, pretty-printed (`config schema`).
std::string settings_schema();

}  // namespace restkv
