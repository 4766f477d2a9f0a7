// Template source -> tokens, as Jinja2's lexer does it with trim_blocks and lstrip_blocks: one newline after a block tag
// or a comment goes, blanks before one at the start of a line go, "-" takes all white space of its side, "+" keeps it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace restkv::chat {

enum class TokenKind : uint8_t {
  kData,
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind;
  size_t offset;     // byte in the normalised source
  std::string text;  // data, name, operator, unescaped string
  int64_t integer = 0;
  double number = 0;

  bool is_name(std::string_view name) const { return kind == TokenKind::kName && text == name; }
  bool is_operator(std::string_view op) const { return kind == TokenKind::kOperator && text == op; }
};

// "\r\n" and "\r" become "\n", and one newline at the very end goes.
std::string normalize_newlines(std::string_view source);
// `source` is normalised. Throws TemplateError. The last token is kEnd.
std::vector<Token> tokenize(std::string_view source);

}  // namespace restkv::chat
