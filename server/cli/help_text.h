// The texts of `restkv help` and `restkv help VERB`, made from the tables of verbs and options.
#pragma once

#include <string>

#include "server/cli/verbs.h"
#include "server/config/options.h"

namespace restkv {

std::string help_of_program();
std::string help_of_verb(const VerbInfo& verb);
std::string value_name(const Option& option);  // " N", " a|b", "" of a switch

}  // namespace restkv
