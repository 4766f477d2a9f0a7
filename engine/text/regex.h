// Pre-tokenizer patterns through PCRE2: JIT, UTF, Unicode classes. Time is bounded by PCRE2's match limit.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "kernels/base/status.h"

namespace restkv {

class Regex {
 public:
  // \s and \S mean the Unicode property White_Space, as in the libraries the patterns were written for (PCRE2 alone
  // would add U+180E).
  static Result<Regex> compile(const std::string& pattern);

  // Goes over the matches in `text` (valid UTF-8), left to right. One per call and thread.
  class Matches {
   public:
    Matches(const Regex& regex, std::string_view text);
    // The next match that is not empty; false at the end, or where the pattern ran into the match limit.
    bool next(size_t* begin, size_t* end);

   private:
    struct Release {
      void operator()(void* data) const;
    };
    const void* code_;
    std::unique_ptr<void, Release> data_;
    std::string_view text_;
    size_t pos_ = 0;
  };

 private:
  std::shared_ptr<const void> code_;
};

}  // namespace restkv
