// Tokens that are looked for in the text before anything else: special tokens ("<|im_end|>") and user-defined pieces.
// At each place the longest one wins, from left to right.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/flat_map.h"
#include "engine/text/tokenizer.h"

namespace restkv {

// Which tokens are found. A guarded one is special or is the markup of a chat format ("<|user|>"), whatever its file says:
// never made of what a user typed into a conversation.
enum class AddedScope : uint8_t { kAll, kWithoutSpecial, kWithoutGuarded };

struct AddedToken {
  int32_t id = -1;
  std::string text;
  bool special = true;       // matched only where special tokens are parsed; hidden from answers
  bool left_strip = false;   // takes the white space before it
  bool right_strip = false;  // takes the white space behind it
  bool single_word = false;  // not beside a word character
  bool normalized = false;   // looked for in the normalised text
  bool guarded = false;      // set by add()
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
  // Cuts `text`. No guarded token is found where it would touch a byte of `plain` (sorted, disjoint).
  void split(std::string_view text, AddedScope scope, std::vector<Part>* parts,
             std::span<const ByteSpan> plain = {}) const;
  bool finds_guarded(std::string_view text) const;

 private:
  bool is_found(const AddedToken& token, AddedScope scope) const {
    return scope == AddedScope::kAll ||
           (scope == AddedScope::kWithoutSpecial ? !token.special : !token.guarded);
  }

  std::vector<AddedToken> tokens_;
  ByteTrie trie_;          // texts -> index into tokens_
  bool starts_[256] = {};  // bytes that some token starts with
};

}  // namespace restkv
