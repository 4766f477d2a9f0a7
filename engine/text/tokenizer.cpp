// Decoding, whole and as a stream.
#include "engine/text/tokenizer.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "engine/text/utf8.h"

namespace restkv {
namespace {

// Appends the bytes that `id` adds to a text; at its start a tokenizer with a dummy prefix takes spaces back.
void append_token(const Tokenizer& tokenizer, int32_t id, bool skip_special, bool* at_start,
                  std::string* text) {
  if (id < 0 || id >= tokenizer.vocab_size()) return;
  if (skip_special && tokenizer.is_special(id)) return;
  const std::string_view bytes = tokenizer.token_bytes(id);
  const LeadingSpaces leading =
      std::exchange(*at_start, false) ? tokenizer.leading_spaces() : LeadingSpaces::kStay;
  if (leading == LeadingSpaces::kAllOfFirstTokenGo && bytes != tokenizer.token_text(id)) {
    std::copy_if(bytes.begin(), bytes.end(), std::back_inserter(*text), [](char c) { return c != ' '; });
  } else {
    text->append(bytes, leading == LeadingSpaces::kOneGoes && bytes.starts_with(' ') ? 1 : 0);
  }
}

}  // namespace

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string text;
  text.reserve(ids.size() * 4);
  bool at_start = true;
  for (const int32_t id : ids) append_token(*this, id, skip_special, &at_start, &text);
  return text;
}

StreamingDetokenizer::StreamingDetokenizer(const Tokenizer& tokenizer, bool skip_special, bool at_start)
    : tokenizer_(&tokenizer), skip_special_(skip_special), at_start_(at_start) {}

std::string StreamingDetokenizer::append(int32_t id) {
  append_token(*tokenizer_, id, skip_special_, &at_start_, &pending_);
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
