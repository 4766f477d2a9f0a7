// Tokens -> tree, with Jinja2's grammar and its precedences: or, and, not, comparison, + -, ~, * / // %, **, unary, then
// attributes, items, calls, filters and tests. Nesting is bounded, so 10,000 parentheses are an error, not a crash.
#pragma once

#include <string_view>

#include "server/chat/ast.h"

namespace restkv::chat {

inline constexpr int kMaxParseDepth = 64;  // brackets, signs, conditions and blocks inside one another

// `source` is normalised (lexer.h). Throws TemplateError.
TemplateTree parse_template(std::string_view source);

}  // namespace restkv::chat
