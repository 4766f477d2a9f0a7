// Binary searches over the tables, and UTF-8.
#include "server/chat/unicode_classes.h"

#include <algorithm>

#include "server/chat/unicode_tables.h"

namespace restkv::chat {
namespace {

bool contains(const CodeRange* ranges, size_t count, uint32_t code) {
  const CodeRange* end = ranges + count;
  const CodeRange* range =
      std::lower_bound(ranges, end, code, [](const CodeRange& r, uint32_t c) { return r.last < c; });
  return range != end && range->first <= code;
}

struct CaseTable {
  const CaseRun* runs;
  size_t num_runs;
  const LongCase* longer;
  size_t num_longer;
};

CaseTable table_of(Case target) {
  switch (target) {
    case Case::kLower: return {kToLower, kToLowerCount, kToLowerLong, kToLowerLongCount};
    case Case::kUpper: return {kToUpper, kToUpperCount, kToUpperLong, kToUpperLongCount};
    case Case::kTitle: return {kToTitle, kToTitleCount, kToTitleLong, kToTitleLongCount};
    case Case::kFold: break;
  }
  return {kToFold, kToFoldCount, kToFoldLong, kToFoldLongCount};
}

const char* find_longer(const CaseTable& table, uint32_t code) {
  const LongCase* end = table.longer + table.num_longer;
  const LongCase* found =
      std::lower_bound(table.longer, end, code, [](const LongCase& l, uint32_t c) { return l.code < c; });
  return found != end && found->code == code ? found->utf8 : nullptr;
}

uint32_t map_code(const CaseTable& table, uint32_t code) {
  // Runs of step 2 overlap (upper and lower letters take turns), so more than one may cover the code.
  const CaseRun* end = table.runs + table.num_runs;
  const CaseRun* run =
      std::upper_bound(table.runs, end, code, [](uint32_t c, const CaseRun& r) { return c < r.first; });
  for (int tries = 0; run != table.runs && tries < 3; ++tries) {
    --run;
    if (code <= run->last && (code - run->first) % run->step == 0) return code + run->delta;
  }
  return code;
}

}  // namespace

bool is_alpha(uint32_t code) {
  if (code < 0x80) return (code | 0x20) >= 'a' && (code | 0x20) <= 'z';
  return contains(kAlpha, kAlphaCount, code);
}
bool is_decimal(uint32_t code) {
  if (code < 0x80) return code >= '0' && code <= '9';
  return contains(kDecimal, kDecimalCount, code);
}
bool is_digit(uint32_t code) { return is_decimal(code) || contains(kDigit, kDigitCount, code); }
bool is_numeric(uint32_t code) {
  if (code < 0x80) return code >= '0' && code <= '9';
  return is_digit(code) || contains(kNumeric, kNumericCount, code);
}
bool is_space(uint32_t code) { return contains(kSpace, kSpaceCount, code); }
bool is_printable(uint32_t code) {
  if (code < 0x7f) return code >= 0x20;
  return contains(kPrintable, kPrintableCount, code);
}
bool is_identifier_start(uint32_t code) { return code == '_' || is_alpha(code); }
bool is_identifier_part(uint32_t code) {
  return is_identifier_start(code) || contains(kIdentifierMark, kIdentifierMarkCount, code);
}

void append_case(uint32_t code, Case target, std::string& out) {
  CaseTable table = table_of(target);
  if (const char* longer = find_longer(table, code)) {
    out += longer;
  } else {
    append_utf8(map_code(table, code), out);
  }
}

bool changes_case(uint32_t code, Case target) {
  CaseTable table = table_of(target);
  return find_longer(table, code) != nullptr || map_code(table, code) != code;
}

CodePoint decode_utf8(std::string_view text, size_t at) {
  auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  uint32_t lead = byte(at);
  if (lead < 0x80) return {lead, 1};
  uint32_t length = lead >= 0xf0 && lead < 0xf5   ? 4
                    : lead >= 0xe0 && lead < 0xf0 ? 3
                    : lead >= 0xc2 && lead < 0xe0 ? 2
                                                  : 0;
  constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  const CodePoint broken = {0xdc00 + lead, 1};
  if (length == 0 || at + length > text.size()) return broken;
  uint32_t code = lead & (0x7fu >> length);
  for (uint32_t i = 1; i < length; ++i) {
    if ((byte(at + i) & 0xc0) != 0x80) return broken;
    code = code << 6 | (byte(at + i) & 0x3f);
  }
  if (code < kLeast[length] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return broken;
  return {code, length};
}

CodePoint decode_utf8_before(std::string_view text, size_t end) {
  for (size_t length = 1; length <= 4 && length <= end; ++length) {
    CodePoint point = decode_utf8(text, end - length);
    if (point.num_bytes == length && (length > 1 || point.code < 0x80)) return point;
  }
  return decode_utf8(text.substr(0, end), end - 1);
}

void append_utf8(uint32_t code, std::string& out) {
  auto put = [&](uint32_t value) { out += static_cast<char>(value); };
  if (code >= 0xdc80 && code < 0xdd00) return put(code - 0xdc00);
  if (code < 0x80) return put(code);
  if (code < 0x800) {
    put(0xc0 | code >> 6);
  } else {
    if (code < 0x10000) {
      put(0xe0 | code >> 12);
    } else {
      put(0xf0 | code >> 18);
      put(0x80 | (code >> 12 & 0x3f));
    }
    put(0x80 | (code >> 6 & 0x3f));
  }
  put(0x80 | (code & 0x3f));
}

size_t count_code_points(std::string_view text) {
  // In valid UTF-8 every byte but the continuations starts a code point; broken text is counted the slow way.
  size_t starts = 0;
  bool plain = true;
  for (char c : text) {
    starts += (static_cast<uint8_t>(c) & 0xc0) != 0x80;
    plain &= static_cast<uint8_t>(c) < 0x80;
  }
  if (plain || is_valid_utf8(text)) return starts;
  size_t count = 0;
  for (size_t at = 0; at < text.size(); at += decode_utf8(text, at).num_bytes) ++count;
  return count;
}

bool is_valid_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    CodePoint point = decode_utf8(text, at);
    if (point.code >= 0xdc00 && point.code < 0xdd00) return false;
    at += point.num_bytes;
  }
  return true;
}

}  // namespace restkv::chat
