// The JIT runs on the machine stack's 32 KiB; a match that needs more is done again by the interpreter, whose
// memory is on the heap and bounded.
#include "engine/text/regex.h"

#include "engine/text/regex_dialect.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace restkv {
namespace {

constexpr uint32_t kMatchLimit = 10'000'000;
constexpr uint32_t kHeapLimitKib = 64 * 1024;

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

}  // namespace

Result<Regex> Regex::compile(const std::string& pattern, RegexDialect dialect) {
  constexpr size_t kMaxPattern = 64 * 1024;
  if (pattern.size() > kMaxPattern) {
    return invalid_argument("a regular expression of " + std::to_string(pattern.size()) +
                            " bytes; at most 65536 are supported");
  }
  const Result<std::string> translated = translate_regex(pattern, dialect);
  if (!translated.ok()) return translated.status();
  const std::string& spelled = *translated;
  // Ruby's ^ and $ stand at every line; Rust's $ only at the very end.
  const uint32_t anchors = dialect == RegexDialect::kOniguruma ? PCRE2_MULTILINE : PCRE2_DOLLAR_ENDONLY;
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(spelled.data()), spelled.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | anchors, &error, &offset, nullptr);
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
  while (pos_ <= text_.size()) {
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text_.data());
    int found = pcre2_match(code, subject, text_.size(), pos_, PCRE2_NO_UTF_CHECK, data, context);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) {
      found =
          pcre2_match(code, subject, text_.size(), pos_, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data, context);
    }
    if (found < 0) break;
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data);
    const bool is_empty = ends[1] == ends[0];
    if (ends[0] >= pos_ && ends[1] >= ends[0] && !(is_empty && ends[1] == last_end_)) {
      *begin = ends[0];
      *end = pos_ = last_end_ = ends[1];
      return true;
    }
    do {  // go on behind the next code point
      ++pos_;
    } while (pos_ < text_.size() && (static_cast<unsigned char>(text_[pos_]) & 0xC0) == 0x80);
  }
  pos_ = text_.size() + 1;
  return false;
}

}  // namespace restkv
