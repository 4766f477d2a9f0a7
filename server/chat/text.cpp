#include "server/chat/text.h"

#include <string.h>  // memmem

#include <algorithm>

namespace restkv::chat {

void Text::mark(size_t begin, size_t end) {
  if (begin == end) return;
  if (!user_.empty() && user_.back().end == begin) {
    user_.back().end = end;
  } else {
    user_.push_back({begin, end});
  }
}

void Text::append(std::string_view bytes, bool is_user) {
  size_t begin = bytes_.size();
  bytes_ += bytes;
  if (is_user) mark(begin, bytes_.size());
}

void Text::append(const Text& other, size_t begin, size_t end) {
  size_t base = bytes_.size();
  bytes_.append(other.bytes_, begin, end - begin);
  auto span = std::lower_bound(other.user_.begin(), other.user_.end(), begin,
                               [](const Span& s, size_t at) { return s.end <= at; });
  for (; span != other.user_.end() && span->begin < end; ++span) {
    mark(base + std::max(span->begin, begin) - begin, base + std::min(span->end, end) - begin);
  }
}

Text Text::slice(size_t begin, size_t end) const {
  Text result;
  result.append(*this, begin, end);
  return result;
}

bool Text::is_user_at(size_t at) const {
  auto span =
      std::lower_bound(user_.begin(), user_.end(), at, [](const Span& s, size_t a) { return s.end <= a; });
  return span != user_.end() && span->begin <= at;
}

size_t find_bytes(std::string_view text, std::string_view part, size_t from) {
  if (from > text.size()) return std::string_view::npos;
  const void* found = memmem(text.data() + from, text.size() - from, part.data(), part.size());
  return found ? static_cast<size_t>(static_cast<const char*>(found) - text.data()) : std::string_view::npos;
}

size_t find_last_bytes(std::string_view text, std::string_view part) {
  const std::string back(text.rbegin(), text.rend()), part_back(part.rbegin(), part.rend());
  const size_t found = find_bytes(back, part_back);
  return found == std::string::npos ? found : text.size() - found - part.size();
}

}  // namespace restkv::chat
