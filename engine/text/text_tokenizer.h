// The tokenizer that every vocabulary format is loaded into. encode: added tokens -> normaliser -> words -> model -> ids.
// A loader fills TokenizerParts; finish_tokenizer checks them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/text/added_tokens.h"
#include "engine/text/normalizer.h"
#include "engine/text/pre_tokenizer.h"
#include "engine/text/subword_model.h"
#include "engine/text/tokenizer.h"
#include "engine/text/vocabulary.h"

namespace restkv {

struct TokenizerParts {
  std::string kind;
  std::unique_ptr<const Vocabulary> vocabulary;  // bytes: what each token adds to decoded text
  AddedTokens added;                             // found in the text as it comes
  AddedTokens added_normalized;                  // found in the normalised text
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  // Where the bytes the model works on differ from the decoded ones ("▁" for a space): its own vocabulary.
  std::unique_ptr<const Vocabulary> model_vocabulary;
  std::unique_ptr<const SubwordModel> model;
  std::vector<int32_t> prefix_ids, suffix_ids;  // around the ids with add_special
  int32_t bos_id = -1;
  std::vector<int32_t> eos_ids;
  LeadingSpaces leading_spaces = LeadingSpaces::kStay;
};

// Sorts eos_ids and checks every id against the vocabulary.
Result<std::shared_ptr<const Tokenizer>> finish_tokenizer(TokenizerParts parts);

// Adds the tokens of types control and unknown, and those that users defined (by the bytes they stand for).
void add_special_tokens(const Vocabulary& vocabulary, AddedTokens* added);
void add_user_defined_tokens(const Vocabulary& vocabulary, AddedTokens* added);

// SentencePiece's mark for a space, U+2581.
inline constexpr const char* kSpaceMark = "\xE2\x96\x81";
// The byte that "<0x0A>" stands for, or -1.
int byte_of_token(std::string_view text);
// Whether `mark` is a token and no normal token holds it behind another character: then a word can begin before each.
bool can_cut_before(const Vocabulary& vocabulary, std::string_view mark);
// The ids of tokens that end an answer in the chat formats of the families, whatever the file's EOS is.
std::vector<int32_t> chat_end_ids(const Vocabulary& vocabulary);

}  // namespace restkv
