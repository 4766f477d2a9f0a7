#include "server/chat/lexer.h"

#include <charconv>
#include <cstdlib>

#include "server/chat/template_error.h"
#include "server/chat/unicode_classes.h"

namespace restkv::chat {
namespace {

constexpr std::string_view kOperators[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                           "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                           ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) {
      size_t tag = find_tag(at_);
      if (tag == std::string_view::npos) {
        add(TokenKind::kData, at_, std::string(source_.substr(at_)));
        break;
      }
      read_tag(tag);
    }
    add(TokenKind::kEnd, source_.size(), "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] static void fail(const std::string& message, size_t offset) {
    throw TemplateError(TemplateErrorKind::kSyntax, message, offset);
  }
  void add(TokenKind kind, size_t offset, std::string text) {
    tokens_.push_back({kind, offset, std::move(text)});
  }
  bool starts(size_t at, std::string_view text) const { return source_.substr(at, text.size()) == text; }
  char byte(size_t at) const { return at < source_.size() ? source_[at] : '\0'; }

  size_t find_tag(size_t from) const {
    for (size_t at = source_.find('{', from); at != std::string_view::npos; at = source_.find('{', at + 1)) {
      char next = byte(at + 1);
      if (next == '%' || next == '{' || next == '#') return at;
    }
    return std::string_view::npos;
  }

  size_t skip_spaces(size_t at) const {
    while (at < source_.size()) {
      CodePoint point = decode_utf8(source_, at);
      if (!is_space(point.code)) break;
      at += point.num_bytes;
    }
    return at;
  }

  // The text before a tag, cut as the tag's sign and lstrip_blocks ask.
  void add_data(size_t begin, size_t end, char sign, bool is_variable) {
    std::string_view text = source_.substr(begin, end - begin);
    if (sign == '-') {
      while (!text.empty()) {
        CodePoint point = decode_utf8_before(text, text.size());
        if (!is_space(point.code)) break;
        text.remove_suffix(point.num_bytes);
      }
    } else if (sign != '+' && !is_variable) {
      size_t newline = text.rfind('\n');
      size_t line = newline == std::string_view::npos ? 0 : newline + 1;
      if ((line > 0 || line_starting_) && skip_spaces(begin + line) >= end) text = text.substr(0, line);
    }
    if (!text.empty()) add(TokenKind::kData, begin, std::string(text));
  }

  void moved_to(size_t at) {
    line_starting_ = at > 0 && source_[at - 1] == '\n';
    at_ = at;
  }

  // At "-%}", "+%}" or "%}": the offset behind it and what it swallows, or npos.
  size_t match_close(size_t at, std::string_view close, bool trims) const {
    if (byte(at) == '-' && starts(at + 1, close)) return skip_spaces(at + 1 + close.size());
    size_t bare = byte(at) == '+' && trims ? at + 1 : at;
    if (!starts(bare, close)) return std::string_view::npos;
    size_t end = bare + close.size();
    return trims && bare == at && byte(end) == '\n' ? end + 1 : end;
  }

  void read_tag(size_t tag) {
    char type = source_[tag + 1];
    char sign = byte(tag + 2) == '-' || byte(tag + 2) == '+' ? byte(tag + 2) : '\0';
    size_t inside = tag + (sign ? 3 : 2);
    add_data(at_, tag, sign, type == '{');
    if (type == '#') return read_comment(tag, inside);
    if (type == '%' && read_raw(tag, inside)) return;
    TokenKind begin = type == '%' ? TokenKind::kBlockBegin : TokenKind::kVariableBegin;
    add(begin, tag, "");
    at_ = inside;
    read_expression(tag, type == '%');
  }

  void read_comment(size_t tag, size_t inside) {
    size_t end = source_.find("#}", inside);
    if (end == std::string_view::npos) fail("Missing end of comment tag", tag);
    if (end > inside && source_[end - 1] == '-') return moved_to(skip_spaces(end + 2));
    bool keeps = end > inside && source_[end - 1] == '+';
    moved_to(!keeps && byte(end + 2) == '\n' ? end + 3 : end + 2);
  }

  bool read_raw(size_t tag, size_t inside) {
    size_t at = skip_spaces(inside);
    if (!starts(at, "raw")) return false;
    at = skip_spaces(at + 3);
    // The newline after {% raw %} stays: only the closing tag trims.
    size_t begin = byte(at) == '-' && starts(at + 1, "%}") ? skip_spaces(at + 3)
                   : starts(at, "%}")                      ? at + 2
                                                           : 0;
    if (begin == 0) return false;
    moved_to(begin);
    for (size_t open = source_.find("{%", begin); open != std::string_view::npos;
         open = source_.find("{%", open + 2)) {
      char sign = byte(open + 2) == '-' || byte(open + 2) == '+' ? byte(open + 2) : '\0';
      size_t name = skip_spaces(open + (sign ? 3 : 2));
      if (!starts(name, "endraw")) continue;
      size_t end = match_close(skip_spaces(name + 6), "%}", true);
      if (end == std::string_view::npos) continue;
      add_data(begin, open, sign, false);
      moved_to(end);
      return true;
    }
    fail("Missing end of raw directive", tag);
  }

  void read_expression(size_t tag, bool is_block) {
    std::string open;  // brackets that wait for their partner
    while (true) {
      at_ = open.empty() ? at_ : skip_spaces(at_);
      if (open.empty()) {
        size_t end = is_block ? match_close(at_, "%}", true) : match_close(at_, "}}", false);
        if (end != std::string_view::npos) {
          add(is_block ? TokenKind::kBlockEnd : TokenKind::kVariableEnd, at_, "");
          return moved_to(end);
        }
        size_t skipped = skip_spaces(at_);
        if (skipped != at_) {
          at_ = skipped;
          continue;
        }
      }
      if (at_ >= source_.size())
        fail(is_block ? "unexpected end of template, expected '%}'"
                      : "unexpected end of template, expected '}}'",
             tag);
      if (!read_number() && !read_name() && !read_string()) read_operator(open);
    }
  }

  bool read_number() {
    if (byte(at_) < '0' || byte(at_) > '9') return false;
    size_t begin = at_;
    if (read_float()) return true;
    int base = 10;
    if (byte(at_) == '0') {
      char marker = static_cast<char>(byte(at_ + 1) | 0x20);
      base = marker == 'x' ? 16 : marker == 'o' ? 8 : marker == 'b' ? 2 : 10;
    }
    size_t digits_at = base == 10 ? begin : begin + 2;
    std::string digits = take_digits(digits_at, base);
    if (digits.empty()) {  // "0x" without digits: a zero, and a name behind it
      digits_at = begin;
      digits = "0";
      at_ = begin + 1;
    } else if (base == 10 && digits[0] == '0' && digits.find_first_not_of('0') != std::string::npos) {
      fail("leading zeros in an integer are not allowed", begin);
    }
    Token token = {TokenKind::kInteger, begin, digits};
    auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), token.integer,
                                        digits_at == begin ? 10 : base);
    if (error != std::errc() || end != digits.data() + digits.size()) fail("integer out of range", begin);
    tokens_.push_back(std::move(token));
    return true;
  }

  // Digits with single underscores between them; moves at_ behind them if there are any.
  std::string take_digits(size_t at, int base) {
    auto is_base_digit = [&](char c) {
      char lower = static_cast<char>(c | 0x20);
      if (base == 16 && lower >= 'a' && lower <= 'f') return true;
      return c >= '0' && c <= '9' && c - '0' < base;
    };
    std::string digits;
    if (base != 10 && byte(at) == '_') ++at;
    while (is_base_digit(byte(at)) || (byte(at) == '_' && !digits.empty() && is_base_digit(byte(at + 1)))) {
      if (byte(at) != '_') digits += byte(at);
      ++at;
    }
    if (!digits.empty()) at_ = at;
    return digits;
  }

  bool read_float() {
    if (at_ > 0 && source_[at_ - 1] == '.') return false;
    size_t begin = at_;
    std::string text = take_digits(at_, 10);
    bool is_float = false;
    if (byte(at_) == '.' && byte(at_ + 1) >= '0' && byte(at_ + 1) <= '9') {
      text += "." + take_digits(at_ + 1, 10);
      is_float = true;
    }
    size_t exponent = at_ + 1;
    if ((byte(at_) | 0x20) == 'e') {
      bool has_sign = byte(exponent) == '+' || byte(exponent) == '-';
      size_t digits_at = exponent + has_sign;
      if (byte(digits_at) >= '0' && byte(digits_at) <= '9') {
        std::string sign(1, has_sign ? byte(exponent) : '+');
        text += "e" + sign + take_digits(digits_at, 10);
        is_float = true;
      }
    }
    if (!is_float) {
      at_ = begin;
      return false;
    }
    Token token = {TokenKind::kFloat, begin, text};
    token.number = std::strtod(text.c_str(), nullptr);
    tokens_.push_back(std::move(token));
    return true;
  }

  bool read_name() {
    size_t begin = at_;
    while (at_ < source_.size()) {
      CodePoint point = decode_utf8(source_, at_);
      if (!is_identifier_part(point.code)) break;
      at_ += point.num_bytes;
    }
    if (at_ == begin) return false;
    std::string name(source_.substr(begin, at_ - begin));
    if (!is_identifier_start(decode_utf8(name, 0).code)) fail("Invalid character in identifier", begin);
    add(TokenKind::kName, begin, std::move(name));
    return true;
  }

  bool read_string() {
    char quote = byte(at_);
    if (quote != '\'' && quote != '"') return false;
    size_t begin = at_++;
    std::string text;
    while (true) {
      size_t end = source_.find_first_of(quote == '"' ? "\"\\" : "'\\", at_);
      if (end == std::string_view::npos) fail("string literal has no end", begin);
      text += source_.substr(at_, end - at_);
      at_ = end + 1;
      if (source_[end] == quote) break;
      if (at_ >= source_.size()) fail("string literal has no end", begin);
      read_escape(text);
    }
    add(TokenKind::kString, begin, std::move(text));
    return true;
  }

  // Behind a backslash: Python's escapes; an unknown one keeps its backslash.
  void read_escape(std::string& text) {
    char c = source_[at_++];
    constexpr std::string_view kNames = "\\'\"abfnrtv";
    constexpr std::string_view kValues = "\\'\"\a\b\f\n\r\t\v";
    if (c == '\n') return;
    if (size_t which = kNames.find(c); which != std::string_view::npos) {
      text += kValues[which];
    } else if (c >= '0' && c <= '7') {
      uint32_t code = c - '0';
      for (int i = 0; i < 2 && byte(at_) >= '0' && byte(at_) <= '7'; ++i)
        code = code * 8 + (source_[at_++] - '0');
      append_utf8(code, text);
    } else if (c == 'x' || c == 'u' || c == 'U') {
      size_t length = c == 'x' ? 2 : c == 'u' ? 4 : 8;
      uint32_t code = 0;
      std::string_view digits = source_.substr(at_, length);
      auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
      if (digits.size() != length || error != std::errc() || end != digits.data() + length) {
        fail(std::string("truncated \\") + c + " escape", at_ - 2);
      }
      if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) fail("illegal Unicode character", at_ - 2);
      append_utf8(code, text);
      at_ += length;
    } else if (c == 'N') {
      fail("\\N{...} escapes are not supported", at_ - 2);
    } else {
      text += '\\';
      text += c;
    }
  }

  void read_operator(std::string& open) {
    for (std::string_view op : kOperators) {
      if (!starts(at_, op)) continue;
      char c = op[0];
      if (op.size() == 1) {
        if (c == '(' || c == '[' || c == '{') open += c == '(' ? ')' : c == '[' ? ']' : '}';
        if (c == ')' || c == ']' || c == '}') {
          if (open.empty()) fail(std::string("unexpected '") + c + "'", at_);
          if (open.back() != c)
            fail(std::string("unexpected '") + c + "', expected '" + open.back() + "'", at_);
          open.pop_back();
        }
      }
      add(TokenKind::kOperator, at_, std::string(op));
      at_ += op.size();
      return;
    }
    CodePoint point = decode_utf8(source_, at_);
    fail("unexpected char '" + std::string(source_.substr(at_, point.num_bytes)) + "'", at_);
  }

  std::string_view source_;
  size_t at_ = 0;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::string normalize_newlines(std::string_view source) {
  std::string result;
  result.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      result += source[i];
    } else {
      result += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    }
  }
  if (!result.empty() && result.back() == '\n') result.pop_back();
  return result;
}

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace restkv::chat
