// Text with its origin: bytes, and which of them came from a user rather than from the template, so that a control token
// typed by a user is never taken for one. Joining, cutting, stripping, splitting and replacing keep the marks byte by
// byte; where an operation mixes bytes (case mapping, formatting) everything it made from user text counts as the user's.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace restkv::chat {

struct Span {
  size_t begin, end;  // bytes [begin, end)
  bool operator==(const Span&) const = default;
};

class Text {
 public:
  Text() = default;
  explicit Text(std::string bytes, bool is_user = false) : bytes_(std::move(bytes)) {
    if (is_user && !bytes_.empty()) user_.push_back({0, bytes_.size()});
  }

  const std::string& bytes() const { return bytes_; }
  size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }
  const std::vector<Span>& user_spans() const { return user_; }  // sorted, disjoint, not empty, not touching
  bool has_user() const { return !user_.empty(); }

  void append(std::string_view bytes, bool is_user = false);
  void append(const Text& other) { append(other, 0, other.size()); }
  void append(const Text& other, size_t begin, size_t end);  // bytes [begin, end) of another text
  Text slice(size_t begin, size_t end) const;
  bool is_user_at(size_t at) const;

 private:
  void mark(size_t begin, size_t end);

  std::string bytes_;
  std::vector<Span> user_;
};

// The first place of `part` at or behind `from`, the last place of it; npos: none. Linear for every input, which
// std::string's are not ("aaaa...b" in "aaaa..."); part must not be empty.
size_t find_bytes(std::string_view text, std::string_view part, size_t from = 0);
size_t find_last_bytes(std::string_view text, std::string_view part);

}  // namespace restkv::chat
