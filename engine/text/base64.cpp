// Four characters are three bytes; padding may be missing.
#include "engine/text/base64.h"

#include <cstdint>

namespace restkv {

bool decode_base64(std::string_view text, std::string* bytes) {
  bytes->clear();
  uint32_t bits = 0;
  int num_bits = 0;
  while (text.ends_with('=')) text.remove_suffix(1);
  for (const char c : text) {
    uint32_t digit = 0;
    if (c >= 'A' && c <= 'Z') {
      digit = static_cast<uint32_t>(c - 'A');
    } else if (c >= 'a' && c <= 'z') {
      digit = static_cast<uint32_t>(c - 'a' + 26);
    } else if (c >= '0' && c <= '9') {
      digit = static_cast<uint32_t>(c - '0' + 52);
    } else if (c == '+' || c == '/') {
      digit = c == '+' ? 62 : 63;
    } else {
      return false;
    }
    bits = bits << 6 | digit;
    num_bits += 6;
    if (num_bits >= 8) {
      num_bits -= 8;
      bytes->push_back(static_cast<char>(bits >> num_bits & 0xFF));
    }
  }
  return num_bits < 6;
}

}  // namespace restkv
