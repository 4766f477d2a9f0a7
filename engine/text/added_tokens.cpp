// Cost: one table lookup per byte, and a trie walk no longer than the longest token where one could start.
#include "engine/text/added_tokens.h"

#include <algorithm>
#include <array>
#include <utility>

#include "engine/text/utf8.h"

namespace restkv {
namespace {

// Start of the code point that ends at `end` (> 0); end - 1 for bytes that are not UTF-8.
size_t char_before(std::string_view text, size_t end) {
  for (size_t back = 1; back <= 4 && back <= end; ++back) {
    if ((static_cast<unsigned char>(text[end - back]) & 0xC0) == 0x80) continue;
    const Utf8Char c = decode_utf8(text.substr(0, end), end - back);
    if (c.state == Utf8State::kValid && c.length == back) return end - back;
    break;
  }
  return end - 1;
}

bool stands_alone(std::string_view text, size_t begin, size_t end) {
  if (begin > 0 && is_word_char(decode_utf8(text, char_before(text, begin)).code)) return false;
  return end == text.size() || !is_word_char(decode_utf8(text, end).code);
}

// Texts that chat formats are made of, also where a file calls them ordinary: "<|...|>" and Gemma's and Mistral's.
bool is_chat_markup(std::string_view text) {
  constexpr std::array<std::string_view, 10> kTexts = {
      "<start_of_turn>",  "<end_of_turn>", "[INST]",         "[/INST]",         "[SYSTEM_PROMPT]",
      "[/SYSTEM_PROMPT]", "[TOOL_CALLS]",  "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]"};
  if (text.size() > 4 && text.starts_with("<|") && text.ends_with("|>")) return true;
  return std::find(kTexts.begin(), kTexts.end(), text) != kTexts.end();
}

}  // namespace

void AddedTokens::add(AddedToken token) {
  if (token.text.empty()) return;
  if (!trie_.insert(token.text, static_cast<int32_t>(tokens_.size()))) return;
  starts_[static_cast<unsigned char>(token.text[0])] = true;
  token.guarded = token.special || is_chat_markup(token.text);
  tokens_.push_back(std::move(token));
}

bool AddedTokens::finds_guarded(std::string_view text) const {
  std::vector<Part> parts;
  split(text, AddedScope::kAll, &parts);
  return std::any_of(parts.begin(), parts.end(), [&](const Part& part) {
    const auto is_it = [&](const AddedToken& token) { return token.id == part.id && token.guarded; };
    return part.id >= 0 && std::any_of(tokens_.begin(), tokens_.end(), is_it);
  });
}

void AddedTokens::split(std::string_view text, AddedScope scope, std::vector<Part>* parts,
                        std::span<const ByteSpan> plain) const {
  size_t done = 0;  // everything before is in `parts`
  auto next_plain = plain.begin();
  for (size_t pos = 0; pos < text.size() && !tokens_.empty();) {
    if (!starts_[static_cast<unsigned char>(text[pos])]) {
      ++pos;
      continue;
    }
    while (next_plain != plain.end() && next_plain->end <= pos) ++next_plain;
    // Guarded tokens that begin at `pos` end here at the latest.
    const size_t guarded_end = next_plain == plain.end() ? text.size() : std::max(pos, next_plain->begin);
    int32_t best = -1;
    size_t best_end = pos;
    uint32_t node = 0;
    for (size_t at = pos; at < text.size(); ++at) {
      node = trie_.step(node, static_cast<unsigned char>(text[at]));
      if (node == ByteTrie::kNoNode) break;
      const int32_t index = trie_.value(node);
      if (index < 0 || !is_found(tokens_[index], scope)) continue;
      if (tokens_[index].guarded && at + 1 > guarded_end) continue;
      best = index;
      best_end = at + 1;
    }
    if (best < 0 || (tokens_[best].single_word && !stands_alone(text, pos, best_end))) {
      ++pos;
      continue;
    }
    size_t begin = pos, end = best_end;
    if (tokens_[best].left_strip) {
      while (begin > done) {
        const size_t before = char_before(text, begin);
        if (!is_white_space(decode_utf8(text, before).code)) break;
        begin = before;
      }
    }
    if (tokens_[best].right_strip) {
      while (end < text.size()) {
        const Utf8Char c = decode_utf8(text, end);
        if (!is_white_space(c.code)) break;
        end += c.length;
      }
    }
    if (begin > done) parts->push_back({-1, text.substr(done, begin - done)});
    parts->push_back({tokens_[best].id, text.substr(begin, end - begin)});
    done = pos = end;
  }
  if (done < text.size()) parts->push_back({-1, text.substr(done)});
}

}  // namespace restkv
