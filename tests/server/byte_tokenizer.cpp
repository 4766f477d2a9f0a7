// Bytes and a few pieces.
#include "tests/server/byte_tokenizer.h"

namespace restkv {

ByteTokenizer::ByteTokenizer(std::vector<std::string> pieces) {
  for (int byte = 0; byte < 256; ++byte) tokens_.emplace_back(1, static_cast<char>(byte));
  tokens_.emplace_back("<s>");
  tokens_.emplace_back("</s>");
  for (std::string& piece : pieces) tokens_.push_back(std::move(piece));
}

std::vector<int32_t> ByteTokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  std::vector<int32_t> ids;
  if (options.add_special) ids.push_back(kBos);
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  return ids;
}

std::string_view ByteTokenizer::token_bytes(int32_t id) const { return tokens_.at(static_cast<size_t>(id)); }

}  // namespace restkv
