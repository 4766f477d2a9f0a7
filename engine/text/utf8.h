// UTF-8 by the book (no overlong forms, no surrogates), and the byte alphabet that GPT-2 vocabularies are written in.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace restkv {

enum class Utf8State : uint8_t {
  kValid,       // a whole code point of `length` bytes
  kIncomplete,  // the text ends inside a code point that could still become valid
  kInvalid,  // `length` bytes that can never be part of one (the longest such prefix, as Python's decoder counts)
};

struct Utf8Char {
  char32_t code = 0;  // U+FFFD unless valid
  uint32_t length = 0;
  Utf8State state = Utf8State::kInvalid;
};

// The code point at `pos` (pos < text.size()).
Utf8Char decode_utf8(std::string_view text, size_t pos);
// Length of the longest prefix of text[pos..] that is valid UTF-8.
size_t valid_utf8_length(std::string_view text, size_t pos);
// Length of the code point at `pos`, 1 for a byte that is not UTF-8.
inline size_t utf8_step(std::string_view text, size_t pos) {
  if (static_cast<unsigned char>(text[pos]) < 0x80) return 1;
  const Utf8Char c = decode_utf8(text, pos);
  return c.state == Utf8State::kValid ? c.length : 1;
}
void append_utf8(std::string* out, char32_t code);

bool is_white_space(char32_t code);  // the Unicode property White_Space
bool is_word_char(char32_t code);    // \w: letters, marks, decimal digits, connectors
bool is_punctuation(char32_t code);  // ASCII punctuation or category P
bool is_number(char32_t code);       // category N

// GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the other 68 for U+0100 and up ("Ġ" is a space).
// The bytes that `text` stands for; none if it holds a character outside of the alphabet.
std::optional<std::string> bytes_of_alphabet_text(std::string_view text);
std::string alphabet_text_of_bytes(std::string_view bytes);

// A token's text for a message: 40 bytes of it at most, between single quotes.
std::string in_quotes(std::string_view text);

}  // namespace restkv
