// Bytes and a few pieces.
#include "tests/server/byte_tokenizer.h"

#include <algorithm>

namespace restkv {

ByteTokenizer::ByteTokenizer(std::vector<std::string> pieces, LeadingSpaces leading_spaces)
    : leading_spaces_(leading_spaces) {
  for (int byte = 0; byte < 256; ++byte) tokens_.emplace_back(1, static_cast<char>(byte));
  tokens_.emplace_back("<s>");
  tokens_.emplace_back("</s>");
  for (std::string& piece : pieces) tokens_.push_back(std::move(piece));
}

std::vector<int32_t> ByteTokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  std::vector<int32_t> ids;
  if (options.add_special) ids.push_back(kBos);
  const auto is_template = [&](size_t begin, size_t end) {
    return std::none_of(options.plain.begin(), options.plain.end(),
                        [&](const ByteSpan& span) { return span.begin < end && span.end > begin; });
  };
  for (size_t at = 0; at < text.size();) {
    size_t len = 1;
    int32_t id = static_cast<unsigned char>(text[at]);
    for (const int32_t special : {kBos, kEos}) {
      const std::string& name = tokens_[static_cast<size_t>(special)];
      if (options.plain.empty() || !text.substr(at).starts_with(name) || !is_template(at, at + name.size()))
        continue;
      id = special;
      len = name.size();
    }
    ids.push_back(id);
    at += len;
  }
  return ids;
}

std::string_view ByteTokenizer::token_bytes(int32_t id) const { return tokens_.at(static_cast<size_t>(id)); }

}  // namespace restkv
