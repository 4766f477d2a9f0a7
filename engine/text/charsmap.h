// SentencePiece's precompiled character map ("nmt_nfkc" and others): longest prefix -> replacement, in a double-array
// trie (darts-clone's layout) followed by the replacements, each ended by NUL.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace restkv {

class CharsMap {
 public:
  static Result<CharsMap> parse(std::string_view blob);
  // Replaces from left to right, the longest match each time; what has no match stays.
  std::string apply(std::string_view text) const;
  size_t longest_replacement() const;

 private:
  std::vector<uint32_t> units_;  // [nodes] of the double array
  std::string replacements_;     // texts, each followed by NUL
};

}  // namespace restkv
