// Pre-tokenizer patterns through PCRE2: JIT, UTF, Unicode classes. Time is bounded by PCRE2's match limit.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "kernels/base/status.h"

namespace restkv {

// Whose pattern it is. Rust: tiktoken and tekken files, and what `tokenizers` builds in; Oniguruma, as Ruby writes
// patterns: those in a tokenizer.json.
enum class RegexDialect : uint8_t { kRust, kOniguruma };

class Regex {
 public:
  // What the dialect means and PCRE2 reads otherwise is rewritten, or refused by name: \s (the Unicode property
  // White_Space), \w and \b, ^ and $, (?m), \h, classes within classes, {n,m}+.
  static Result<Regex> compile(const std::string& pattern, RegexDialect dialect);

  // Goes over the matches in `text` (valid UTF-8), left to right. One per call and thread.
  class Matches {
   public:
    Matches(const Regex& regex, std::string_view text);
    // The next match, empty ones too, but for one right behind a match; false at the end, or where the pattern ran into
    // the match limit.
    bool next(size_t* begin, size_t* end);

   private:
    struct Release {
      void operator()(void* data) const;
    };
    const void* code_;
    std::unique_ptr<void, Release> data_;
    std::string_view text_;
    size_t pos_ = 0;
    size_t last_end_ = std::string_view::npos;  // of the last match
  };

 private:
  std::shared_ptr<const void> code_;
};

}  // namespace restkv
