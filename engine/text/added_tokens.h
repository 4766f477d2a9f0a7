// Tokens that are looked for in the text before anything else: special tokens ("<|im_end|>") and user-defined pieces.
// At each place the longest one wins, from left to right.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/flat_map.h"

namespace restkv {

struct AddedToken {
  int32_t id = -1;
  std::string text;
  bool special = true;       // matched only where special tokens are parsed; hidden from answers
  bool left_strip = false;   // takes the white space before it
  bool right_strip = false;  // takes the white space behind it
  bool single_word = false;  // not beside a word character
  bool normalized = false;   // looked for in the normalised text
};

class AddedTokens {
 public:
  void add(AddedToken token);
  bool empty() const { return tokens_.empty(); }

  // A stretch of text between added tokens (id -1) or one of them.
  struct Part {
    int32_t id = -1;
    std::string_view text;
  };
  // Cuts `text`; with parse_special false, special tokens stay text.
  void split(std::string_view text, bool parse_special, std::vector<Part>* parts) const;

 private:
  std::vector<AddedToken> tokens_;
  ByteTrie trie_;          // texts -> index into tokens_
  bool starts_[256] = {};  // bytes that some token starts with
};

}  // namespace restkv
