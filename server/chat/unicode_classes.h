// UTF-8 reading and writing, and the character classes and case mappings of Python's str. A code point above 0x10FFFF
// is in no class. Bytes that are not UTF-8 read as one code point each (U+DC80 + low bits), and are written back as is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace restkv::chat {

bool is_alpha(uint32_t code);
bool is_decimal(uint32_t code);
bool is_digit(uint32_t code);
bool is_numeric(uint32_t code);
bool is_space(uint32_t code);
bool is_printable(uint32_t code);
bool is_identifier_start(uint32_t code);
bool is_identifier_part(uint32_t code);
inline bool is_alnum(uint32_t code) { return is_alpha(code) || is_numeric(code); }

enum class Case { kLower, kUpper, kTitle, kFold };
// Appends the mapping of one code point, which may be several, as UTF-8.
void append_case(uint32_t code, Case target, std::string& out);
// Whether a mapping changes the character.
bool changes_case(uint32_t code, Case target);

struct CodePoint {
  uint32_t code;
  uint32_t num_bytes;
};
// The code point at `at` < text.size().
CodePoint decode_utf8(std::string_view text, size_t at);
// The code point that ends before `end` > 0.
CodePoint decode_utf8_before(std::string_view text, size_t end);
void append_utf8(uint32_t code, std::string& out);
size_t count_code_points(std::string_view text);
bool is_valid_utf8(std::string_view text);

}  // namespace restkv::chat
