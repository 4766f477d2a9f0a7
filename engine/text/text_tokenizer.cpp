// encode in one pass over the parts; nothing here depends on the format a vocabulary came from.
#include "engine/text/text_tokenizer.h"

#include <algorithm>
#include <array>
#include <utility>

namespace restkv {
namespace {

class TextTokenizer final : public Tokenizer {
 public:
  explicit TextTokenizer(TokenizerParts parts) : parts_(std::move(parts)) {
    const auto& prefix = parts_.prefix_ids;
    adds_bos_ = parts_.bos_id >= 0 && std::find(prefix.begin(), prefix.end(), parts_.bos_id) != prefix.end();
  }

  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options) const override {
    std::vector<int32_t> ids;
    ids.reserve(text.size() / 3 + 8);
    if (options.add_special) ids.insert(ids.end(), parts_.prefix_ids.begin(), parts_.prefix_ids.end());
    const AddedScope scope =
        options.special_tokens == SpecialTokens::kParse ? AddedScope::kAll : AddedScope::kWithoutSpecial;
    std::vector<AddedTokens::Part> stretches;
    parts_.added.split(text, scope, &stretches, options.plain);
    if (!options.plain.empty() && !parts_.added_normalized.empty())
      stretches = cut_at_plain(text, stretches, options.plain);
    WordList words;
    bool first = true;
    for (const AddedTokens::Part& stretch : stretches) {
      if (stretch.id >= 0) {
        ids.push_back(stretch.id);
        first = false;
        continue;
      }
      const AddedScope here = stretch.id == kPlain ? AddedScope::kWithoutGuarded : scope;
      if (parts_.normalizer.empty()) {
        encode_stretch(stretch.text, here, first, &words, &ids);
      } else {
        encode_stretch(parts_.normalizer.apply(stretch.text, first), here, first, &words, &ids);
      }
      first = false;
    }
    if (options.add_special) ids.insert(ids.end(), parts_.suffix_ids.begin(), parts_.suffix_ids.end());
    return ids;
  }

  std::string_view token_bytes(int32_t id) const override { return parts_.vocabulary->bytes(id); }
  std::string_view token_text(int32_t id) const override { return parts_.vocabulary->text(id); }
  bool is_special(int32_t id) const override {
    const TokenType type = parts_.vocabulary->type(id);
    return type == TokenType::kControl || type == TokenType::kUnknown;
  }
  int32_t vocab_size() const override { return parts_.vocabulary->size(); }
  std::string_view kind() const override { return parts_.kind; }
  int32_t bos_id() const override { return parts_.bos_id; }
  const std::vector<int32_t>& eos_ids() const override { return parts_.eos_ids; }
  bool adds_bos() const override { return adds_bos_; }
  LeadingSpaces leading_spaces() const override { return parts_.leading_spaces; }

 private:
  static constexpr int32_t kPlain = -2;  // the id of a stretch without guarded tokens

  // Tokens of the normalised text cannot be told apart by the bytes of the text before it. So a stretch that has a
  // guarded one is cut where plain bytes begin and end; there words do not join, which only such tokenizers see.
  std::vector<AddedTokens::Part> cut_at_plain(std::string_view text,
                                              const std::vector<AddedTokens::Part>& stretches,
                                              std::span<const ByteSpan> plain) const {
    std::vector<AddedTokens::Part> cut;
    auto next = plain.begin();
    for (const AddedTokens::Part& stretch : stretches) {
      if (stretch.id >= 0 || !parts_.added_normalized.finds_guarded(parts_.normalizer.apply(stretch.text))) {
        cut.push_back(stretch);
        continue;
      }
      const auto begin = static_cast<size_t>(stretch.text.data() - text.data());
      const size_t end = begin + stretch.text.size();
      for (size_t at = begin; at < end;) {
        while (next != plain.end() && next->end <= at) ++next;
        const bool is_plain = next != plain.end() && next->begin <= at;
        const size_t border = next == plain.end() ? end : is_plain ? next->end : next->begin;
        const size_t until = std::min(end, border);
        cut.push_back({is_plain ? kPlain : -1, text.substr(at, until - at)});
        at = until;
      }
    }
    return cut;
  }

  void encode_stretch(std::string_view text, AddedScope scope, bool first, WordList* words,
                      std::vector<int32_t>* ids) const {
    if (parts_.added_normalized.empty()) {
      encode_words(text, first, words, ids);
      return;
    }
    std::vector<AddedTokens::Part> pieces;
    parts_.added_normalized.split(text, scope, &pieces);
    for (const AddedTokens::Part& piece : pieces) {
      if (piece.id >= 0) {
        ids->push_back(piece.id);
      } else {
        encode_words(piece.text, first && piece.text.data() == text.data(), words, ids);
      }
    }
  }

  void encode_words(std::string_view text, bool first, WordList* words, std::vector<int32_t>* ids) const {
    parts_.pre_tokenizer.split(text, first, words);
    for (const std::string_view word : words->words) parts_.model->encode(word, ids);
  }

  TokenizerParts parts_;
  bool adds_bos_ = false;
};

}  // namespace

Result<std::shared_ptr<const Tokenizer>> finish_tokenizer(TokenizerParts parts) {
  const auto check = [&](int32_t id, const char* what) -> Status {
    if (parts.vocabulary->contains(id)) return {};
    return invalid_argument(std::string(what) + " is token " + std::to_string(id) +
                            ", but the vocabulary has " + std::to_string(parts.vocabulary->size()) +
                            " tokens");
  };
  std::sort(parts.eos_ids.begin(), parts.eos_ids.end());
  parts.eos_ids.erase(std::unique(parts.eos_ids.begin(), parts.eos_ids.end()), parts.eos_ids.end());
  if (parts.bos_id != -1) {
    if (Status status = check(parts.bos_id, "the BOS token"); !status.ok()) return status;
  }
  for (const int32_t id : parts.eos_ids) {
    if (Status status = check(id, "an end token"); !status.ok()) return status;
  }
  for (const auto* around : {&parts.prefix_ids, &parts.suffix_ids}) {
    for (const int32_t id : *around) {
      if (Status status = check(id, "a token put around the text"); !status.ok()) return status;
    }
  }
  return std::shared_ptr<const Tokenizer>(std::make_shared<TextTokenizer>(std::move(parts)));
}

void add_special_tokens(const Vocabulary& vocabulary, AddedTokens* added) {
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    const TokenType type = vocabulary.type(id);
    if (type != TokenType::kControl && type != TokenType::kUnknown) continue;
    AddedToken token;
    token.id = id;
    token.text = vocabulary.text(id);
    added->add(std::move(token));
  }
}

void add_user_defined_tokens(const Vocabulary& vocabulary, AddedTokens* added) {
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    if (vocabulary.type(id) != TokenType::kUserDefined) continue;
    AddedToken token;
    token.id = id;
    token.text = vocabulary.bytes(id);
    token.special = false;
    added->add(std::move(token));
  }
}

int byte_of_token(std::string_view text) {
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return -1;
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  };
  const int high = digit(text[3]), low = digit(text[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

bool can_cut_before(const Vocabulary& vocabulary, std::string_view mark) {
  bool is_token = false;
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    if (vocabulary.type(id) != TokenType::kNormal) continue;
    std::string_view bytes = vocabulary.bytes(id);
    is_token |= bytes == mark;
    while (bytes.starts_with(mark)) bytes.remove_prefix(mark.size());
    if (bytes.find(mark) != bytes.npos) return false;
  }
  return is_token;
}

std::vector<int32_t> chat_end_ids(const Vocabulary& vocabulary) {
  constexpr std::array<std::string_view, 8> kTexts = {"<|eot_id|>",      "<|im_end|>",    "<|end|>",
                                                      "<end_of_turn>",   "<|endoftext|>", "<|eom_id|>",
                                                      "<|end_of_text|>", "<EOT>"};
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    if (vocabulary.type(id) != TokenType::kControl && vocabulary.type(id) != TokenType::kUserDefined)
      continue;
    if (std::find(kTexts.begin(), kTexts.end(), vocabulary.text(id)) != kTexts.end()) ids.push_back(id);
  }
  return ids;
}

}  // namespace restkv
