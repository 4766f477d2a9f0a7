// The tables behind unicode_classes.h; unicode_tables.cpp is written by make_unicode_tables.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace restkv::chat {

struct CodeRange {
  uint32_t first, last;  // inclusive
};
struct CaseRun {
  uint32_t first, last;  // inclusive
  uint32_t step;         // 1 or 2: every code point or every second one
  int32_t delta;
};
struct LongCase {
  uint32_t code;
  const char* utf8;  // two or three code points
};

extern const CodeRange kAlpha[], kDecimal[], kDigit[], kNumeric[], kSpace[], kPrintable[], kIdentifierMark[];
extern const size_t kAlphaCount, kDecimalCount, kDigitCount, kNumericCount, kSpaceCount, kPrintableCount,
    kIdentifierMarkCount;
extern const CaseRun kToLower[], kToUpper[], kToTitle[], kToFold[];
extern const size_t kToLowerCount, kToUpperCount, kToTitleCount, kToFoldCount;
extern const LongCase kToLowerLong[], kToUpperLong[], kToTitleLong[], kToFoldLong[];
extern const size_t kToLowerLongCount, kToUpperLongCount, kToTitleLongCount, kToFoldLongCount;

}  // namespace restkv::chat
