// The one option table. A row gives an option its flag, YAML place, environment name, type, bounds, help and
// the verbs that take it; flags, YAML, environment, `config show`, the JSON schema and the help texts are all
// read from the table. To add an option: one field in settings.h and one row in the files of option_rows.h.
//
//   flag --max-model-len | environment RESTKV_MAX_MODEL_LEN | YAML model.max_model_len |
//   Settings::engine.max_model_len
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "kernels/base/status.h"
#include "server/config/settings.h"

namespace restkv {

enum class OptionType : uint8_t { kBool, kInt, kFloat, kSize, kDuration, kString, kEnum, kPath, kIntList };

// The verbs, as bits of a mask. `config` takes every option that has a YAML key.
enum Verb : uint32_t {
  kServe = 1u << 0,
  kComplete = 1u << 1,
  kTokenize = 1u << 2,
  kLogits = 1u << 3,
  kInspect = 1u << 4,
  kBench = 1u << 5,
  kConfig = 1u << 6,
  kPull = 1u << 7,
  kList = 1u << 8,
  kRemove = 1u << 9,
  kChat = 1u << 10,
  kEval = 1u << 11,
  kCalibrate = 1u << 12,
  kDoctor = 1u << 13,
  kHealth = 1u << 14,
};

// How an enum field is read and set by the index of its name in Option::choices.
struct EnumField {
  size_t (*get)(const Settings&);
  void (*set)(Settings&, size_t);
};

// Where the value lives: one accessor per C++ type. std::optional: nothing unless given (kEnum, kInt, kFloat).
using OptionField =
    std::variant<bool* (*)(Settings&), int32_t* (*)(Settings&), int64_t* (*)(Settings&),
                 double* (*)(Settings&), milliseconds* (*)(Settings&), std::string* (*)(Settings&),
                 std::vector<int32_t>* (*)(Settings&), EnumField, std::optional<std::string>* (*)(Settings&),
                 std::optional<int64_t>* (*)(Settings&), std::optional<double>* (*)(Settings&)>;

struct Option {
  std::string_view flag;                       // "max-model-len"; the environment name follows from it
  std::vector<std::string_view> aliases = {};  // other flags: vLLM's, llama.cpp's; one letter: -c
  std::string_view section = {};               // YAML; empty: a flag only
  std::string_view key = {};
  OptionType type = OptionType::kString;
  double min = 0, max = 0;  // inclusive; kInt, kFloat, kSize (bytes), kDuration (milliseconds)
  std::vector<std::string_view> choices = {};  // kEnum
  uint32_t verbs = 0;
  std::string_view help = {};  // one sentence, with the unit
  OptionField field = static_cast<bool* (*)(Settings&)>(nullptr);
};

std::span<const Option> option_table();

// By flag or alias, with '_' taken as '-'. Null: none.
const Option* find_flag(std::string_view flag);
// By YAML place, with '-' taken as '_'.
const Option* find_key(std::string_view section, std::string_view key);
std::string environment_name(const Option& option);  // "RESTKV_MAX_MODEL_LEN"
std::vector<std::string_view> yaml_sections();       // in the table's order

// Reads `text` into the option's field. Error: what is wrong and what is allowed, without a place ("70000 is
// out of bounds (0 to 65535)").
Status set_option(const Option& option, std::string_view text, Settings& settings);
// The value as `set_option` would read it again: "32768", "16KiB", "10s", "true".
std::string option_text(const Option& option, const Settings& settings);
std::string default_text(const Option& option);
// Whether it is one of the `cache` object's fields, which profiles may set.
bool is_cache_field(const Option& option);

// The defaults of section cache, resolved into Settings::engine.cache. Error: flag, key and what is allowed.
Status resolve_cache_options(Settings& settings);

// What no single row can say: a non-loopback address without `insecure`. Error: which setting to change.
Status check_settings(const Settings& settings);

}  // namespace restkv
