#include "server/chat/string_ops.h"

#include <algorithm>

namespace restkv::chat {
namespace {

// Calls visit(code point, begin, end) for each character.
template <class Visit>
void each_character(const Text& text, Visit visit) {
  for (size_t at = 0; at < text.size();) {
    CodePoint point = decode_utf8(text.bytes(), at);
    visit(point.code, at, at + point.num_bytes);
    at += point.num_bytes;
  }
}

// Charged before the loops: characters are dearer than copied bytes.
void charge_characters(Context& context, const Text& text) {
  context.charge(1 + static_cast<int64_t>(text.size() / 64));
}

bool is_cased(uint32_t code) { return changes_case(code, Case::kLower) || changes_case(code, Case::kUpper); }

// Greek sigma at the end of a word has a small letter of its own.
bool is_final_sigma(const Text& text, size_t begin, size_t end) {
  const std::string& bytes = text.bytes();
  return begin > 0 && is_cased(decode_utf8_before(bytes, begin).code) &&
         !(end < bytes.size() && is_cased(decode_utf8(bytes, end).code));
}

void append_mapped(const Text& text, uint32_t code, size_t begin, size_t end, Case target, Text& out) {
  std::string mapped;
  if (code == 0x3a3 && target == Case::kLower && is_final_sigma(text, begin, end)) {
    append_utf8(0x3c2, mapped);
  } else {
    append_case(code, target, mapped);
  }
  out.append(mapped, text.has_user() && text.is_user_at(begin));
}

// How many bytes at `at` are a line end as str.splitlines knows them; 0: none.
size_t line_end_size(const std::string& bytes, size_t at) {
  CodePoint point = decode_utf8(bytes, at);
  switch (point.code) {
    case '\r': return at + 1 < bytes.size() && bytes[at + 1] == '\n' ? 2 : 1;
    case '\n':
    case '\v':
    case '\f':
    case 0x1c:
    case 0x1d:
    case 0x1e:
    case 0x85:
    case 0x2028:
    case 0x2029: return point.num_bytes;
    default: return 0;
  }
}

}  // namespace

Text strip_text(Context& context, const Text& text, const Value& chars, Side side) {
  if (!chars.is_none() && !chars.is_string()) context.fail("strip arg must be None or str");
  charge_characters(context, text);
  const std::string& bytes = text.bytes();
  std::vector<uint32_t> set;
  if (chars.is_string())
    each_character(chars.text(), [&](uint32_t code, size_t, size_t) { set.push_back(code); });
  std::sort(set.begin(), set.end());
  auto goes = [&](uint32_t code) {
    return chars.is_none() ? is_space(code) : std::binary_search(set.begin(), set.end(), code);
  };
  size_t begin = 0, end = bytes.size();
  while (side != Side::kRight && begin < end) {
    CodePoint point = decode_utf8(bytes, begin);
    if (!goes(point.code)) break;
    begin += point.num_bytes;
  }
  while (side != Side::kLeft && end > begin) {
    CodePoint point = decode_utf8_before(bytes, end);
    if (!goes(point.code)) break;
    end -= point.num_bytes;
  }
  return text.slice(begin, end);
}

Text map_case(Context& context, const Text& text, Case target) {
  charge_characters(context, text);
  Text out;
  each_character(text, [&](uint32_t code, size_t begin, size_t end) {
    append_mapped(text, code, begin, end, target, out);
  });
  return out;
}

Text capitalize_text(Context& context, const Text& text) {
  charge_characters(context, text);
  Text out;
  each_character(text, [&](uint32_t code, size_t begin, size_t end) {
    append_mapped(text, code, begin, end, begin == 0 ? Case::kTitle : Case::kLower, out);
  });
  return out;
}

Text title_text(Context& context, const Text& text) {
  charge_characters(context, text);
  Text out;
  bool in_word = false;
  each_character(text, [&](uint32_t code, size_t begin, size_t end) {
    append_mapped(text, code, begin, end, in_word ? Case::kLower : Case::kTitle, out);
    in_word = is_cased(code);
  });
  return out;
}

Text swap_case(Context& context, const Text& text) {
  charge_characters(context, text);
  Text out;
  each_character(text, [&](uint32_t code, size_t begin, size_t end) {
    append_mapped(text, code, begin, end, changes_case(code, Case::kLower) ? Case::kLower : Case::kUpper,
                  out);
  });
  return out;
}

Text replace_text(Context& context, const Text& text, const Text& old_part, const Text& new_part,
                  int64_t count) {
  charge_characters(context, text);
  const std::string& bytes = text.bytes();
  Text out;
  size_t copied = 0;
  auto put = [&](size_t begin, size_t end) {
    out.append(text, copied, begin);
    out.append(new_part);
    copied = end;
    context.check_size(out.size());
    context.charge_bytes(new_part.size());
  };
  if (old_part.empty()) {  // between all characters, and at both ends
    for (size_t at = 0; count != 0 && at <= bytes.size(); --count) {
      put(at, at);
      at += at < bytes.size() ? decode_utf8(bytes, at).num_bytes : 1;
    }
  } else {
    for (size_t at = find_bytes(bytes, old_part.bytes()); count != 0 && at != std::string::npos; --count) {
      put(at, at + old_part.size());
      at = find_bytes(bytes, old_part.bytes(), copied);
    }
  }
  out.append(text, copied, bytes.size());
  context.check_size(out.size());
  return out;
}

std::vector<Text> split_text(Context& context, const Text& text, const Text* separator, int64_t max_splits) {
  charge_characters(context, text);
  const std::string& bytes = text.bytes();
  std::vector<Text> parts;
  size_t begin = 0;
  if (separator) {
    if (separator->empty()) context.fail("empty separator");
    for (size_t at = find_bytes(bytes, separator->bytes()); max_splits != 0 && at != std::string::npos;
         --max_splits) {
      context.charge(1);
      parts.push_back(text.slice(begin, at));
      begin = at + separator->size();
      at = find_bytes(bytes, separator->bytes(), begin);
    }
    parts.push_back(text.slice(begin, bytes.size()));
    return parts;
  }
  auto skip = [&](size_t at, bool spaces) {
    while (at < bytes.size()) {
      CodePoint point = decode_utf8(bytes, at);
      if (is_space(point.code) != spaces) break;
      at += point.num_bytes;
    }
    return at;
  };
  for (begin = skip(0, true); begin < bytes.size(); --max_splits) {
    context.charge(1);
    if (max_splits == 0) {
      parts.push_back(text.slice(begin, bytes.size()));
      break;
    }
    size_t end = skip(begin, false);
    parts.push_back(text.slice(begin, end));
    begin = skip(end, true);
  }
  // With cuts left over, trailing white space belongs to nothing; without, it stays with the last part.
  return parts;
}

std::vector<Text> split_text_from_right(Context& context, const Text& text, const Text* separator,
                                        int64_t max_splits) {
  charge_characters(context, text);
  const std::string& bytes = text.bytes();
  std::vector<Text> parts;
  size_t end = bytes.size();
  if (separator) {
    if (separator->empty()) context.fail("empty separator");
    // Forward through the text backwards.
    const std::string back(bytes.rbegin(), bytes.rend());
    const std::string separator_back(separator->bytes().rbegin(), separator->bytes().rend());
    size_t size = separator->size();
    for (size_t at = find_bytes(back, separator_back); max_splits != 0 && at != std::string::npos;
         --max_splits) {
      context.charge(1);
      parts.push_back(text.slice(bytes.size() - at, end));
      end = bytes.size() - at - size;
      at = find_bytes(back, separator_back, at + size);
    }
    parts.push_back(text.slice(0, end));
  } else {
    auto skip = [&](size_t at, bool spaces) {
      while (at > 0) {
        CodePoint point = decode_utf8_before(bytes, at);
        if (is_space(point.code) != spaces) break;
        at -= point.num_bytes;
      }
      return at;
    };
    for (end = skip(end, true); end > 0; --max_splits) {
      context.charge(1);
      size_t begin = max_splits == 0 ? 0 : skip(end, false);
      parts.push_back(text.slice(begin, end));
      end = max_splits == 0 ? 0 : skip(begin, true);
    }
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<Text> split_lines(Context& context, const Text& text, bool keep_ends) {
  charge_characters(context, text);
  const std::string& bytes = text.bytes();
  std::vector<Text> lines;
  size_t begin = 0;
  for (size_t at = 0; at < bytes.size();) {
    size_t end_size = line_end_size(bytes, at);
    if (end_size == 0) {
      at += decode_utf8(bytes, at).num_bytes;
      continue;
    }
    context.charge(1);
    lines.push_back(text.slice(begin, keep_ends ? at + end_size : at));
    at += end_size;
    begin = at;
  }
  if (begin < bytes.size()) lines.push_back(text.slice(begin, bytes.size()));
  return lines;
}

Text pad_text(Context& context, const Value& string, int64_t width, const Text& fill, Side text_side) {
  if (count_code_points(fill.bytes()) != 1)
    context.fail("The fill character must be exactly one character long");
  int64_t length = static_cast<int64_t>(string.as_string()->length);
  int64_t missing = std::max<int64_t>(width - length, 0);
  context.check_size(static_cast<size_t>(missing));
  context.check_size(string.text().size() + static_cast<size_t>(missing) * fill.size());
  context.charge_bytes(string.text().size() + static_cast<size_t>(missing) * 16);
  // Python's center gives an odd column to the left only if the width is odd too.
  int64_t left = text_side == Side::kLeft    ? 0
                 : text_side == Side::kRight ? missing
                                             : missing / 2 + (missing & width & 1);
  Text out;
  for (int64_t i = 0; i < left; ++i) out.append(fill);
  out.append(string.text());
  for (int64_t i = left; i < missing; ++i) out.append(fill);
  return out;
}

Text join_texts(Context& context, const Text& separator, const std::vector<Text>& parts) {
  Text out;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (i > 0) out.append(separator);
    out.append(parts[i]);
    context.charge_bytes(parts[i].size() + separator.size());
    context.check_size(out.size());
  }
  return out;
}

}  // namespace restkv::chat
