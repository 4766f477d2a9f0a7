// Flags of vLLM and llama.cpp that have no row in the option table, because there is nothing here to set: those whose only
// possible value is how this server always works are taken, all others are an error that says what to use. None is ignored.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace restkv {

struct ForeignFlag {
  std::vector<std::string_view> names;  // without dashes, as in the option table
  bool takes_value = false;
  std::vector<std::string_view> accepted =
      {};                        // the values that say what is so anyway; a switch: "true" or "false"
  std::string_view reason = {};  // why not, or what to use instead
};

std::span<const ForeignFlag> foreign_flags();
const ForeignFlag* find_foreign_flag(std::string_view name);  // '_' taken as '-'; null: none
// Error: the flag as it was written, and what to do.
Status check_foreign_flag(const ForeignFlag& flag, std::string_view spelling, std::string_view value);

}  // namespace restkv
