// One pass over the pattern. Where the same characters mean the same they are copied; a class that holds another is
// flattened, since a union of sets needs no brackets.
#include "engine/text/regex_dialect.h"

namespace restkv {
namespace {

// The Unicode property White_Space; PCRE2's \s would add U+180E.
constexpr std::string_view kSpace =
    "\\t-\\r\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}";
// Alphabetic, marks, decimal numbers and connectors; PCRE2's \w takes all numbers and no marks.
constexpr std::string_view kWord =
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}\\x{1F150}-\\x{1F169}"
    "\\x{1F170}-\\x{1F189}";
constexpr std::string_view kJoiners = "\\x{200C}\\x{200D}";  // are of words in Rust alone
constexpr std::string_view kHexDigits = "0-9A-Fa-f";

class Translator {
 public:
  Translator(std::string_view pattern, RegexDialect dialect)
      : pattern_(pattern), is_oniguruma_(dialect == RegexDialect::kOniguruma), word_(kWord) {
    if (!is_oniguruma_) word_ += kJoiners;
  }

  Result<std::string> run() {
    while (at_ < pattern_.size()) {
      Status status = class_depth_ > 0 ? step_in_class() : step_outside();
      if (!status.ok()) return status;
    }
    return std::move(out_);
  }

 private:
  Status unsupported(const std::string& what) const {
    return unimplemented("the regular expression '" + std::string(pattern_) + "' has " + what + " at " +
                         std::to_string(at_) + ", which is not supported");
  }
  bool is_at(std::string_view text) const { return pattern_.substr(at_).starts_with(text); }
  void copy(size_t count) {
    out_ += pattern_.substr(at_, count);
    at_ += count;
  }
  void put(std::string_view before, std::string_view text, std::string_view behind, size_t count) {
    out_ += before;
    out_ += text;
    out_ += behind;
    at_ += count;
  }

  // \p{...}, \x{...} and the like as one.
  void copy_escape() {
    const std::string_view rest = pattern_.substr(at_);
    const size_t close = rest.size() > 2 && rest[2] == '{' ? rest.find('}') : rest.npos;
    copy(close == rest.npos ? 2 : close + 1);
  }

  Status step_in_class() {
    if (is_at("\\s")) return put("", kSpace, "", 2), Status();
    if (is_at("\\w")) return put("", word_, "", 2), Status();
    if (is_at("\\W")) return unsupported("\\W in a class");
    if (is_at("\\h") && is_oniguruma_) return put("", kHexDigits, "", 2), Status();
    if (is_at("\\h") || is_at("\\H")) return unsupported("\\h in a class");
    if (is_at("\\")) return copy_escape(), Status();
    if (is_at("[:")) return unsupported("a POSIX class");
    if (is_at("[^")) return unsupported("a negated class in a class");
    if (is_at("&&")) return unsupported("an intersection of classes");
    if (is_at("[")) return ++class_depth_, ++at_, Status();
    if (is_at("]") && --class_depth_ > 0) return ++at_, Status();
    copy(1);
    return {};
  }

  Status step_outside() {
    if (is_at("\\s")) return put("[", kSpace, "]", 2), Status();
    if (is_at("\\S")) return put("[^", kSpace, "]", 2), Status();
    if (is_at("\\w")) return put("[", word_, "]", 2), Status();
    if (is_at("\\W")) return put("[^", word_, "]", 2), Status();
    if (is_at("\\b") || is_at("\\B")) {
      const std::string word = "[" + word_ + "]";
      const bool at_edge = is_at("\\b");
      out_ += "(?:(?<=" + word + (at_edge ? ")(?!" : ")(?=") + word + ")|(?<!" + word +
              (at_edge ? ")(?=" : ")(?!") + word + "))";
      at_ += 2;
      return {};
    }
    if (is_at("\\h") && is_oniguruma_) return put("[", kHexDigits, "]", 2), Status();
    if (is_at("\\H") && is_oniguruma_) return put("[^", kHexDigits, "]", 2), Status();
    if (is_at("\\h") || is_at("\\H")) return unsupported("\\h");
    if (is_at("\\")) return copy_escape(), Status();
    if (is_at("[")) {
      ++class_depth_;
      copy(1);
      if (is_at("^")) copy(1);
      if (is_at("]")) copy(1);
      return {};
    }
    if (is_at("(?") && is_oniguruma_) return copy_group_head(), Status();
    if (is_at("{") && is_oniguruma_) {
      const size_t close = pattern_.find_first_not_of("0123456789,", at_ + 1);
      if (close != pattern_.npos && pattern_.substr(close).starts_with("}+"))
        return unsupported("'+' behind {n,m}");
    }
    copy(1);
    return {};
  }

  // Ruby's m is what others call s: a dot takes line ends, too. Its own s is none.
  void copy_group_head() {
    const size_t end = pattern_.find_first_not_of("imx-", at_ + 2);
    const bool is_options = end != pattern_.npos && (pattern_[end] == ':' || pattern_[end] == ')');
    copy(2);
    while (is_options && at_ < end) {
      if (is_at("m")) {
        put("s", "", "", 1);
      } else {
        copy(1);
      }
    }
  }

  std::string_view pattern_;
  bool is_oniguruma_;
  std::string word_;
  std::string out_;
  size_t at_ = 0;
  int class_depth_ = 0;
};

}  // namespace

Result<std::string> translate_regex(std::string_view pattern, RegexDialect dialect) {
  return Translator(pattern, dialect).run();
}

}  // namespace restkv
