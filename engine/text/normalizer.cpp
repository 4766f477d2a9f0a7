// Unicode forms come from utf8proc, applied to each stretch of valid UTF-8; other bytes pass.
#include "engine/text/normalizer.h"

#include <utf8proc.h>

#include <cstdlib>
#include <utility>

#include "engine/text/utf8.h"

namespace restkv {
namespace {

std::string map_valid_runs(const std::string& text, utf8proc_option_t options) {
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const size_t length = valid_utf8_length(text, pos);
    if (length > 0) {
      utf8proc_uint8_t* mapped = nullptr;
      const utf8proc_ssize_t size = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data() + pos),
                                                 static_cast<utf8proc_ssize_t>(length), &mapped, options);
      if (size >= 0) {
        out.append(reinterpret_cast<const char*>(mapped), static_cast<size_t>(size));
      } else {
        out.append(text, pos, length);  // out of memory inside utf8proc
      }
      std::free(mapped);
      pos += length;
    }
    if (pos < text.size()) {
      const size_t bad = decode_utf8(text, pos).length;
      out.append(text, pos, bad);
      pos += bad;
    }
  }
  return out;
}

bool is_ascii(std::string_view text) {
  for (const char c : text) {
    if (static_cast<unsigned char>(c) >= 0x80) return false;
  }
  return true;
}

// on_char(code, bytes, out) decides what each valid code point becomes.
template <class OnChar>
std::string map_chars(const std::string& text, OnChar on_char) {
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Char c = decode_utf8(text, pos);
    const std::string_view bytes = std::string_view(text).substr(pos, c.length);
    if (c.state == Utf8State::kValid) {
      on_char(c.code, bytes, &out);
    } else {
      out += bytes;
    }
    pos += c.length;
  }
  return out;
}

}  // namespace

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  out.reserve(text.size() + text.size() / 2);
  size_t done = 0;
  for (size_t at = text.find(from); at != text.npos; at = text.find(from, done)) {
    out.append(text, done, at - done);
    out += to;
    done = at + from.size();
  }
  out.append(text, done);
  return out;
}

Normalizer::Step unicode_form_step(UnicodeForm form) {
  int options = UTF8PROC_STABLE;
  options |= form == UnicodeForm::kNfc || form == UnicodeForm::kNfkc ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (form == UnicodeForm::kNfkc || form == UnicodeForm::kNfkd) options |= UTF8PROC_COMPAT;
  return [options](std::string text) {
    return is_ascii(text) ? text : map_valid_runs(text, static_cast<utf8proc_option_t>(options));
  };
}

Normalizer::Step lowercase_step() {
  return [](std::string text) {
    return map_chars(text, [](char32_t code, std::string_view, std::string* out) {
      if (code == 0x130) {  // the one letter whose lower case has two code points
        *out += "i\xCC\x87";
      } else {
        append_utf8(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(code))));
      }
    });
  };
}

Normalizer::Step strip_accents_step() {
  return [](std::string text) {
    return map_chars(text, [](char32_t code, std::string_view bytes, std::string* out) {
      const int category = utf8proc_category(static_cast<utf8proc_int32_t>(code));
      if (category < UTF8PROC_CATEGORY_MN || category > UTF8PROC_CATEGORY_ME) *out += bytes;
    });
  };
}

Normalizer::Step strip_step(bool left, bool right) {
  return [left, right](std::string text) {
    size_t begin = 0, end = 0;  // [begin, end) without white space at the chosen sides
    bool seen = false;
    for (size_t pos = 0; pos < text.size();) {
      const Utf8Char c = decode_utf8(text, pos);
      if (!is_white_space(c.code)) {
        if (!seen) begin = pos;
        seen = true;
        end = pos + c.length;
      }
      pos += c.length;
    }
    if (!seen) return left || right ? std::string() : text;
    if (!left) begin = 0;
    if (!right) end = text.size();
    return text.substr(begin, end - begin);
  };
}

Normalizer::Step prepend_step(std::string prefix) {
  return [prefix = std::move(prefix)](std::string text) { return text.empty() ? text : prefix + text; };
}

Normalizer::Step replace_step(std::string from, std::string to) {
  return
      [from = std::move(from), to = std::move(to)](std::string text) { return replace_all(text, from, to); };
}

}  // namespace restkv
