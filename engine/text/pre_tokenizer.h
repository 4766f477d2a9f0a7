// Cuts text into the words that a model encodes one by one: a list of steps, each cutting (or rewriting) what the step
// before left. Nothing is lost: what no pattern matches is a word too, and so are bytes that are not UTF-8.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/regex.h"

namespace restkv {

// What happens to the matches of a pattern (names as in tokenizer.json).
enum class SplitBehavior : uint8_t { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct WordList {
  std::vector<std::string_view> words;
  std::deque<std::string> rewritten;  // owns the bytes of words that are not the caller's text
};

class PreTokenizer {
 public:
  void add_pattern(Regex pattern, SplitBehavior behavior, bool invert);
  void add_literal(std::string literal, SplitBehavior behavior, bool invert);
  void add_digits(bool individual);
  void add_punctuation(SplitBehavior behavior);
  void add_white_space(SplitBehavior behavior);
  // Puts a space in front of words that do not begin with one (GPT-2's add_prefix_space).
  void add_space_prefix();
  enum class Prepend : uint8_t { kNever, kFirst, kAlways };
  // Spaces become `replacement`, one is put in front by `prepend`; `split`: a word begins at each.
  void add_metaspace(std::string replacement, Prepend prepend, bool split);
  // A word begins at each run of `mark` behind something else. Exact where no token holds `mark` behind another
  // character, so that no merge could have crossed the cut.
  void add_cut_before(std::string mark);

  // `first`: whether `text` begins the whole input. The words stay valid as long as `text` and `list`.
  void split(std::string_view text, bool first, WordList* list) const;

 private:
  enum class Kind : uint8_t {
    kPattern,
    kLiteral,
    kDigits,
    kPunctuation,
    kWhiteSpace,
    kSpacePrefix,
    kMetaspace,
    kCutBefore,
  };
  struct Step {
    Kind kind = Kind::kPattern;
    std::optional<Regex> pattern;
    std::string literal;
    SplitBehavior behavior = SplitBehavior::kIsolated;
    bool flag = false;  // invert, individual or split
    Prepend prepend = Prepend::kNever;
  };
  static void apply(const Step& step, std::string_view word, bool first, WordList* list,
                    std::vector<std::string_view>* out);
  std::vector<Step> steps_;
};

// The pattern of a named pre-tokenizer (GGUF's tokenizer.ggml.pre).
struct NamedPreTokenizer {
  PreTokenizer pre_tokenizer;
  bool ignore_merges = false;  // a word that is a token is that token
  bool adds_bos = false;       // where the file does not say
};
Result<NamedPreTokenizer> named_pre_tokenizer(std::string_view name);
// GPT-2's pattern, which tokenizer.json's ByteLevel implies.
Result<Regex> gpt2_pattern();

}  // namespace restkv
