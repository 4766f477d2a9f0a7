// The JIT runs on the machine stack's 32 KiB; a match that needs more is done again by the interpreter, whose
// memory is on the heap and bounded.
#include "engine/text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace restkv {
namespace {

constexpr uint32_t kMatchLimit = 10'000'000;
constexpr uint32_t kHeapLimitKib = 64 * 1024;

constexpr std::string_view kWhiteSpace =
    "\\t-\\r\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}";

const pcre2_match_context* match_context() {
  static pcre2_match_context* const context = [] {
    pcre2_match_context* made = pcre2_match_context_create(nullptr);
    CHECK(made != nullptr);
    pcre2_set_match_limit(made, kMatchLimit);
    pcre2_set_heap_limit(made, kHeapLimitKib);
    return made;
  }();
  return context;
}

// Spells out \s everywhere and \S outside of classes.
std::string with_unicode_white_space(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char escaped = pattern[++i];
      if (escaped == 's') {
        out += in_class ? std::string(kWhiteSpace) : "[" + std::string(kWhiteSpace) + "]";
      } else if (escaped == 'S' && !in_class) {
        out += "[^" + std::string(kWhiteSpace) + "]";
      } else {
        out += {c, escaped};
      }
      continue;
    }
    if (c == '[' && !in_class) {
      in_class = true;
      out += c;
      if (i + 1 < pattern.size() && pattern[i + 1] == '^') out += pattern[++i];
      if (i + 1 < pattern.size() && pattern[i + 1] == ']') out += pattern[++i];
      continue;
    }
    if (c == ']') in_class = false;
    out += c;
  }
  return out;
}

}  // namespace

Result<Regex> Regex::compile(const std::string& pattern) {
  constexpr size_t kMaxPattern = 64 * 1024;
  if (pattern.size() > kMaxPattern) {
    return invalid_argument("a regular expression of " + std::to_string(pattern.size()) +
                            " bytes; at most 65536 are supported");
  }
  const std::string spelled = with_unicode_white_space(pattern);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(spelled.data()), spelled.size(),
                                   PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
  if (code == nullptr) {
    PCRE2_UCHAR message[256] = {};
    pcre2_get_error_message(error, message, sizeof(message));
    return invalid_argument("the regular expression '" + pattern + "' is not understood: " +
                            reinterpret_cast<const char*>(message) + " at " + std::to_string(offset));
  }
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where there is no JIT, pcre2_match interprets
  Regex regex;
  regex.code_ = std::shared_ptr<const void>(
      code, [](const void* p) { pcre2_code_free(static_cast<pcre2_code*>(const_cast<void*>(p))); });
  return regex;
}

void Regex::Matches::Release::operator()(void* data) const {
  pcre2_match_data_free(static_cast<pcre2_match_data*>(data));
}

Regex::Matches::Matches(const Regex& regex, std::string_view text)
    : code_(regex.code_.get()),
      data_(pcre2_match_data_create_from_pattern(static_cast<const pcre2_code*>(code_), nullptr)),
      text_(text) {
  CHECK(data_ != nullptr);
}

bool Regex::Matches::next(size_t* begin, size_t* end) {
  const auto* code = static_cast<const pcre2_code*>(code_);
  auto* data = static_cast<pcre2_match_data*>(data_.get());
  auto* context = const_cast<pcre2_match_context*>(match_context());  // only read
  while (pos_ < text_.size()) {
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text_.data());
    int found = pcre2_match(code, subject, text_.size(), pos_, PCRE2_NO_UTF_CHECK, data, context);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) {
      found =
          pcre2_match(code, subject, text_.size(), pos_, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data, context);
    }
    if (found < 0) {
      pos_ = text_.size();
      return false;
    }
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data);
    if (ends[1] > ends[0] && ends[0] >= pos_) {
      *begin = ends[0];
      *end = pos_ = ends[1];
      return true;
    }
    // An empty match: go on behind the next code point.
    pos_ = ends[1] > pos_ ? ends[1] : pos_;
    if (pos_ >= text_.size()) return false;
    do {
      ++pos_;
    } while (pos_ < text_.size() && (static_cast<unsigned char>(text_[pos_]) & 0xC0) == 0x80);
  }
  return false;
}

}  // namespace restkv
