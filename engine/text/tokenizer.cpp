// Decoding, whole and as a stream.
#include "engine/text/tokenizer.h"

#include "engine/text/utf8.h"

namespace restkv {
namespace {

// The bytes that `id` adds to a text; at its start a tokenizer with a dummy prefix takes one space back.
std::string_view bytes_in_text(const Tokenizer& tokenizer, int32_t id, bool skip_special, bool* at_start) {
  if (id < 0 || id >= tokenizer.vocab_size()) return {};
  if (skip_special && tokenizer.is_special(id)) return {};
  std::string_view bytes = tokenizer.token_bytes(id);
  if (*at_start && tokenizer.strips_leading_space() && bytes.starts_with(' ')) bytes.remove_prefix(1);
  *at_start = false;
  return bytes;
}

}  // namespace

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string text;
  text.reserve(ids.size() * 4);
  bool at_start = true;
  for (const int32_t id : ids) text += bytes_in_text(*this, id, skip_special, &at_start);
  return text;
}

StreamingDetokenizer::StreamingDetokenizer(const Tokenizer& tokenizer, bool skip_special, bool at_start)
    : tokenizer_(&tokenizer), skip_special_(skip_special), at_start_(at_start) {}

std::string StreamingDetokenizer::append(int32_t id) {
  pending_ += bytes_in_text(*tokenizer_, id, skip_special_, &at_start_);
  std::string complete;
  size_t pos = 0;
  while (pos < pending_.size()) {
    const Utf8Char c = decode_utf8(pending_, pos);
    if (c.state == Utf8State::kIncomplete) break;
    if (c.state == Utf8State::kValid) {
      complete.append(pending_, pos, c.length);
    } else {
      append_utf8(&complete, 0xFFFD);
    }
    pos += c.length;
  }
  pending_.erase(0, pos);
  return complete;
}

std::string StreamingDetokenizer::finish() {
  std::string rest;
  if (!pending_.empty()) append_utf8(&rest, 0xFFFD);
  pending_.clear();
  return rest;
}

}  // namespace restkv
