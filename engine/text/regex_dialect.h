// From the regular expressions of tokenizer files to PCRE2's.
#pragma once

#include <string>
#include <string_view>

#include "engine/text/regex.h"

namespace restkv {

// The same pattern as PCRE2 reads it, for the options of Regex::compile. INVALID_ARGUMENT, UNIMPLEMENTED: what of the
// pattern cannot be written so, and where.
Result<std::string> translate_regex(std::string_view pattern, RegexDialect dialect);

}  // namespace restkv
