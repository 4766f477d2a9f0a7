// A unit of the double array: bits 0-7 label, 8 has a leaf, 9 offset is shifted by 8, 10-30 offset; a leaf holds its
// value in bits 0-30. Every index is checked: the blob comes from a file.
#include "engine/text/charsmap.h"

#include <algorithm>
#include <cstring>

#include "engine/text/utf8.h"

namespace restkv {

Result<CharsMap> CharsMap::parse(std::string_view blob) {
  uint32_t trie_bytes = 0;
  if (blob.size() < 4) return invalid_argument("the precompiled character map is cut short");
  std::memcpy(&trie_bytes, blob.data(), 4);
  if (trie_bytes > blob.size() - 4 || trie_bytes % 4 != 0 || trie_bytes == 0) {
    return invalid_argument("the precompiled character map is malformed");
  }
  CharsMap map;
  map.units_.resize(trie_bytes / 4);
  std::memcpy(map.units_.data(), blob.data() + 4, trie_bytes);
  map.replacements_ = blob.substr(4 + trie_bytes);
  return map;
}

std::string CharsMap::apply(std::string_view text) const {
  const auto offset_of = [](uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); };
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    size_t best_len = 0, best_value = 0;
    size_t node = offset_of(units_[0]);
    for (size_t at = pos; at < text.size(); ++at) {
      const unsigned char byte = static_cast<unsigned char>(text[at]);
      node ^= byte;
      if (node >= units_.size()) break;
      const uint32_t unit = units_[node];
      if ((unit & 0x800000FFu) != byte) break;
      node ^= offset_of(unit);
      if (node >= units_.size()) break;
      if ((unit >> 8) & 1) {
        best_len = at + 1 - pos;
        best_value = units_[node] & 0x7FFFFFFFu;
      }
    }
    if (best_len > 0 && best_value < replacements_.size()) {
      out += replacements_.c_str() + best_value;
      pos += best_len;
    } else {
      const size_t length = utf8_step(text, pos);
      out += text.substr(pos, length);
      pos += length;
    }
  }
  return out;
}

size_t CharsMap::longest_replacement() const {
  size_t longest = 0;
  for (size_t at = 0; at < replacements_.size();) {
    const size_t end = std::min(replacements_.find('\0', at), replacements_.size());
    longest = std::max(longest, end - at);
    at = end + 1;
  }
  return longest;
}

}  // namespace restkv
