// Python's two ways to format: "%s of %d" % (a, b), and "{} of {:>5}".format(a, b). Template text and values keep their
// origin. Widths and precisions are bounded by the size of a string.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "server/chat/context.h"
#include "server/chat/unicode_classes.h"

namespace restkv::chat {
namespace {

struct Format {
  std::string fill = " ";
  char align = '\0';  // '<', '>', '^', '='; 0: by kind
  char sign = '-';
  bool is_alternate = false;
  char grouping = '\0';
  int64_t width = 0;
  int64_t precision = -1;
  char type = '\0';
};

constexpr int64_t kMaxPrecision = 300;

// A decimal number at `at`, moved behind it; -1: none.
int64_t read_number(Context& context, const std::string& text, size_t& at) {
  if (at >= text.size() || text[at] < '0' || text[at] > '9') return -1;
  int64_t number = 0;
  auto [end, error] = std::from_chars(text.data() + at, text.data() + text.size(), number);
  if (error != std::errc() || number > static_cast<int64_t>(context.limits().output_bytes)) {
    context.fail("width or precision too large in format string");
  }
  at = end - text.data();
  return number;
}

std::string group_digits(std::string digits, char separator, size_t group) {
  size_t end = digits.find_first_not_of("0123456789abcdefABCDEF");
  if (end == std::string::npos) end = digits.size();
  for (size_t at = end; at > group; at -= group) digits.insert(at - group, 1, separator);
  return digits;
}

// The digits of a number without its sign.
std::string number_digits(Context& context, const Value& value, const Format& format, bool& is_negative,
                          std::string& prefix) {
  char type = format.type;
  bool is_float_type = type != '\0' && std::string_view("eEfFgG%").find(type) != std::string_view::npos;
  if (value.is_integral() && !is_float_type) {
    int64_t number = value.as_int();
    is_negative = number < 0;
    uint64_t magnitude = is_negative ? 0 - static_cast<uint64_t>(number) : static_cast<uint64_t>(number);
    int base = type == 'x' || type == 'X' ? 16 : type == 'o' ? 8 : type == 'b' ? 2 : 10;
    char buffer[72];
    auto [end, error] = std::to_chars(buffer, buffer + sizeof(buffer), magnitude, base);
    std::string digits(buffer, end);
    if (type == 'X')
      std::transform(digits.begin(), digits.end(), digits.begin(),
                     [](char c) { return c >= 'a' ? c - 32 : c; });
    if (format.is_alternate && base != 10) prefix = std::string("0") + type;
    if (format.grouping) digits = group_digits(std::move(digits), format.grouping, base == 10 ? 3 : 4);
    return digits;
  }
  double number = value.as_float();
  is_negative = std::signbit(number) && !std::isnan(number);
  number = std::fabs(number);
  if (type == '%') number *= 100;
  bool is_upper = type == 'E' || type == 'F' || type == 'G';
  std::string digits;
  if (!std::isfinite(number)) {
    digits = std::isnan(number) ? (is_upper ? "NAN" : "nan") : (is_upper ? "INF" : "inf");
  } else if (type == '\0' && format.precision < 0) {
    digits = float_repr(number);
  } else {
    char letter = type == '%' ? 'f' : type == '\0' ? 'g' : type;
    int64_t precision = format.precision < 0 ? 6 : format.precision;
    if (precision > kMaxPrecision) context.fail("precision too large in format string");
    const char spec[] = {'%', '.', '*', letter, '\0'};
    const char alternate[] = {'%', '#', '.', '*', letter, '\0'};
    char buffer[1024];
    int length = std::snprintf(buffer, sizeof(buffer), format.is_alternate ? alternate : spec,
                               static_cast<int>(precision), number);
    digits.assign(buffer, std::clamp<int>(length, 0, sizeof(buffer) - 1));
    if (type == '\0' && digits.find_first_of(".e") == std::string::npos) digits += ".0";
  }
  if (format.grouping) digits = group_digits(std::move(digits), format.grouping, 3);
  if (type == '%') digits += "%";
  return digits;
}

// Fills `text` (`length` code points) to the width.
Text pad(Context& context, Text text, size_t length, const Format& format, char default_align) {
  if (format.width <= static_cast<int64_t>(length)) return text;
  size_t missing = static_cast<size_t>(format.width) - length;
  context.check_size(text.size() + missing * format.fill.size());
  context.charge_bytes(missing * 16);
  char align = format.align ? format.align : default_align;
  size_t left = align == '<' ? 0 : align == '^' ? missing / 2 : missing;
  Text out;
  for (size_t i = 0; i < left; ++i) out.append(format.fill);
  out.append(text);
  for (size_t i = left; i < missing; ++i) out.append(format.fill);
  return out;
}

Text format_number(Context& context, const Value& value, const Format& format) {
  bool is_negative = false;
  std::string prefix;
  std::string digits = number_digits(context, value, format, is_negative, prefix);
  std::string sign = is_negative ? "-" : format.sign == '+' ? "+" : format.sign == ' ' ? " " : "";
  sign += prefix;
  if (format.align != '=') return pad(context, Text(sign + digits), sign.size() + digits.size(), format, '>');
  Format rest = format;
  rest.align = '>';
  rest.width -= static_cast<int64_t>(sign.size());
  Text out(sign);
  out.append(pad(context, Text(digits), digits.size(), rest, '>'));
  return out;
}

Text format_text(Context& context, const Text& text, const Format& format) {
  size_t length = count_code_points(text.bytes());
  if (format.precision < 0 || format.precision >= static_cast<int64_t>(length))
    return pad(context, text, length, format, '<');
  size_t end = 0;
  for (int64_t i = 0; i < format.precision; ++i) end += decode_utf8(text.bytes(), end).num_bytes;
  return pad(context, text.slice(0, end), static_cast<size_t>(format.precision), format, '<');
}

// "%..." ---------------------------------------------------------------------------------------------------------------

class PercentFormatter {
 public:
  PercentFormatter(Context& context, const Value& format, const Value& arguments)
      : context_(context), format_(format), arguments_(arguments) {}

  Value run() {
    const std::string& bytes = format_.bytes();
    size_t copied = 0;
    for (size_t at = bytes.find('%'); at != std::string::npos; at = bytes.find('%', copied)) {
      context_.charge(1);
      out_.append(format_.text(), copied, at);
      copied = read_conversion(at + 1);
      context_.check_size(out_.size());
    }
    out_.append(format_.text(), copied, bytes.size());
    // Anything with items may stand for a mapping, whose entries need not all be used.
    const bool is_mapping = arguments_.is_dict() || arguments_.is_list() || arguments_.is_undefined() ||
                            object_as<RangeObject>(arguments_, ObjectKind::kRange) != nullptr;
    size_t given = arguments_.is_tuple() ? arguments_.items().size() : is_mapping ? 0 : 1;
    if (next_ < given) context_.fail("not all arguments converted during string formatting");
    return context_.make_string(std::move(out_), format_.as_string()->is_markup);
  }

 private:
  Value next_argument() {
    if (arguments_.is_tuple()) {
      if (next_ < arguments_.items().size()) return arguments_.items()[next_++];
    } else if (next_ == 0) {
      ++next_;
      return arguments_;
    }
    context_.fail("not enough arguments for format string");
  }

  int64_t read_amount(size_t& at) {
    if (at < format_.bytes().size() && format_.bytes()[at] == '*') {
      ++at;
      Value amount = next_argument();
      if (!amount.is_integral()) context_.fail("* wants int");
      if (std::abs(amount.as_int()) > static_cast<int64_t>(context_.limits().output_bytes))
        context_.fail("width too big");
      return amount.as_int();
    }
    return read_number(context_, format_.bytes(), at);
  }

  size_t read_conversion(size_t at) {
    const std::string& bytes = format_.bytes();
    Format format;
    Value value;
    bool has_value = false;
    if (at < bytes.size() && bytes[at] == '(') {
      size_t close = bytes.find(')', at);
      if (close == std::string::npos) context_.fail("incomplete format key");
      if (!arguments_.is_dict()) context_.fail("format requires a mapping");
      const Value* entry = arguments_.as_dict()->find(std::string_view(bytes).substr(at + 1, close - at - 1));
      if (!entry) context_.fail("the format key '" + bytes.substr(at + 1, close - at - 1) + "' is not there");
      value = *entry;
      has_value = true;
      at = close + 1;
    }
    bool is_left = false, is_zero = false;
    for (; at < bytes.size() && std::string_view("-+ #0").find(bytes[at]) != std::string_view::npos; ++at) {
      is_left |= bytes[at] == '-';
      is_zero |= bytes[at] == '0';
      if (bytes[at] == '#') format.is_alternate = true;
      if (bytes[at] == '+' || (bytes[at] == ' ' && format.sign != '+')) format.sign = bytes[at];
    }
    format.width = read_amount(at);
    if (format.width < -1) {
      is_left = true;
      format.width = -format.width;
    }
    if (at < bytes.size() && bytes[at] == '.') {
      ++at;
      format.precision = std::max<int64_t>(read_amount(at), 0);
    }
    while (at < bytes.size() && std::string_view("hlL").find(bytes[at]) != std::string_view::npos) ++at;
    if (at >= bytes.size()) context_.fail("incomplete format");
    char type = bytes[at++];
    if (type == '%') {
      out_.append("%");
      return at;
    }
    if (!has_value) value = next_argument();
    format.align = is_left ? '<' : is_zero ? '=' : '>';
    write(value, type, format, is_zero && !is_left);
    return at;
  }

  void write(const Value& value, char type, Format format, bool is_zero) {
    switch (type) {
      case 's':
      case 'r':
      case 'a': {
        Text text = type == 's' ? context_.str(value) : context_.repr(value);
        if (format_.as_string()->is_markup) text = escape_html(context_, type == 's' ? value : Value(text));
        if (format.align == '=') format.align = '>';
        out_.append(format_text(context_, text, format));
        return;
      }
      case 'c': {
        Text text;
        if (value.is_integral()) {
          std::string bytes;
          if (value.as_int() < 0 || value.as_int() > 0x10ffff || (value.as_int() & ~0x7ff) == 0xd800) {
            context_.fail("%c arg not in range");
          }
          append_utf8(static_cast<uint32_t>(value.as_int()), bytes);
          text.append(bytes);
        } else if (value.is_string() && value.as_string()->length == 1) {
          text = value.text();
        } else {
          context_.fail("%c requires int or char");
        }
        out_.append(format_text(context_, text, format));
        return;
      }
      default: break;
    }
    if (std::string_view("diuoxXeEfFgG").find(type) == std::string_view::npos) {
      context_.fail(std::string("unsupported format character '") + type + "'");
    }
    context_.require_defined(value);
    if (!value.is_number())
      context_.fail(std::string("%") + type + " format: a real number is required, not " + value.type_name());
    if (is_zero) format.fill = "0";
    bool is_decimal = type == 'd' || type == 'i' || type == 'u';
    format.type = is_decimal ? 'd' : type;
    bool is_integer_type = is_decimal || type == 'o' || type == 'x' || type == 'X';
    if (!is_integer_type) {
      out_.append(format_number(context_, value, format));
      return;
    }
    Value integer = value;
    if (value.is_float()) {
      if (!is_decimal) context_.fail(std::string("%") + type + " format: an integer is required, not float");
      if (!(std::fabs(value.as_float()) < 9.2e18)) context_.fail("integer out of range");
      integer = Value(static_cast<int64_t>(value.as_float()));
    }
    if (format.precision > 0) {  // at least so many digits
      Format digits = {.fill = "0", .align = '=', .width = format.precision, .type = format.type};
      bool is_signed = integer.as_int() < 0;
      digits.width += is_signed;
      format.precision = -1;
      if (format.align == '=') format.align = '>', format.fill = " ";
      Text text = format_number(context_, integer, digits);
      size_t size = text.size();
      out_.append(pad(context_, std::move(text), size, format, '>'));
      return;
    }
    format.precision = -1;
    out_.append(format_number(context_, integer, format));
  }

  Context& context_;
  const Value& format_;
  const Value& arguments_;
  Text out_;
  size_t next_ = 0;
};

// "{...}" --------------------------------------------------------------------------------------------------------------

class BraceFormatter {
 public:
  BraceFormatter(Context& context, const Value& format, CallArguments& arguments)
      : context_(context), format_(format), arguments_(arguments) {}

  Value run() { return context_.make_string(expand(format_.text(), 2), format_.as_string()->is_markup); }

 private:
  Text expand(const Text& text, int depth) {
    if (depth < 0) context_.fail("Max string recursion exceeded");
    const std::string& bytes = text.bytes();
    Text out;
    size_t copied = 0;
    for (size_t at = bytes.find_first_of("{}"); at != std::string::npos;
         at = bytes.find_first_of("{}", copied)) {
      context_.charge(1);
      bool is_double = at + 1 < bytes.size() && bytes[at + 1] == bytes[at];
      out.append(text, copied, is_double ? at + 1 : at);
      copied = at + 2;
      if (is_double) continue;
      if (bytes[at] == '}') context_.fail("Single '}' encountered in format string");
      size_t close = at + 1;
      for (int open = 1; open > 0; ++close) {
        if (close >= bytes.size()) context_.fail("expected '}' before end of string");
        open += bytes[close] == '{' ? 1 : bytes[close] == '}' ? -1 : 0;
      }
      out.append(field(text.slice(at + 1, close - 1), depth));
      context_.check_size(out.size());
      copied = close;
    }
    out.append(text, copied, bytes.size());
    return out;
  }

  Text field(const Text& text, int depth) {
    const std::string& bytes = text.bytes();
    size_t colon = bytes.find(':'), mark = bytes.find('!');
    size_t name_end = std::min({colon, mark, bytes.size()});
    char conversion = '\0';
    size_t spec_at = bytes.size();
    if (mark < colon) {
      if (mark + 1 >= bytes.size()) context_.fail("unmatched '!' in format spec");
      conversion = bytes[mark + 1];
      if (mark + 2 < bytes.size() && bytes[mark + 2] != ':')
        context_.fail("expected ':' after conversion specifier");
      spec_at = std::min(mark + 3, bytes.size());
    } else if (colon != std::string::npos) {
      spec_at = colon + 1;
    }
    Value value = find_value(bytes.substr(0, name_end));
    if (conversion == 'r' || conversion == 'a') {
      value = context_.make_string(context_.repr(value));
    } else if (conversion == 's') {
      value = context_.make_string(context_.str(value));
    } else if (conversion != '\0') {
      context_.fail(std::string("Unknown conversion specifier ") + conversion);
    }
    Text spec = expand(text.slice(spec_at, bytes.size()), depth - 1);
    Text result = format_value(value, spec.bytes());
    if (format_.as_string()->is_markup && !(value.is_string() && value.as_string()->is_markup)) {
      result = escape_html(context_, Value(result));
    }
    return result;
  }

  Value find_value(const std::string& path) {
    size_t end = std::min(path.find_first_of(".["), path.size());
    std::string first = path.substr(0, end);
    Value value;
    size_t number_at = 0;
    int64_t number = first.empty() ? next_++ : read_number(context_, first, number_at);
    if (first.empty() || (number >= 0 && number_at == first.size())) {
      is_manual_ |= !first.empty();
      if (is_manual_ && next_ > 0)
        context_.fail("format(): numbered and unnumbered fields exclude each other");
      if (number >= static_cast<int64_t>(arguments_.positional.size())) {
        context_.fail("Replacement index " + std::to_string(number) +
                      " out of range for positional args tuple");
      }
      value = arguments_.positional[number];
    } else {
      auto found = std::find_if(arguments_.keyword.begin(), arguments_.keyword.end(),
                                [&](const auto& entry) { return entry.first == first; });
      if (found == arguments_.keyword.end())
        context_.fail("no argument '" + first + "' for the format string");
      value = found->second;
    }
    for (size_t at = end; at < path.size();) {
      context_.charge(1);
      if (path[at] == '.') {
        size_t next = std::min(path.find_first_of(".[", at + 1), path.size());
        value = context_.get_attribute(value, path.substr(at + 1, next - at - 1));
        at = next;
      } else if (path[at] == '[') {
        size_t close = path.find(']', at);
        if (close == std::string::npos) context_.fail("Missing ']' in format string");
        std::string key = path.substr(at + 1, close - at - 1);
        size_t key_end = 0;
        int64_t index = read_number(context_, key, key_end);
        value = context_.get_item(value, index >= 0 && key_end == key.size() ? Value(index) : Value(key));
        at = close + 1;
      } else {
        context_.fail("Only '.' or '[' may follow ']' in format field specifier");
      }
    }
    return value;
  }

  Text format_value(const Value& value, const std::string& spec) {
    if (spec.empty()) return context_.str(value);
    Format format = read_spec(spec);
    bool is_number = value.is_number() && !(value.is_bool() && format.type == '\0');
    if (is_number) {
      if (format.type == 'n') format.type = value.is_float() ? 'g' : 'd';
      if (format.type == 'c' || format.type == 's') context_.fail("Unknown format code for a number");
      bool is_integer_type =
          format.type != '\0' && std::string_view("dxXob").find(format.type) != std::string_view::npos;
      if (value.is_float() && is_integer_type)
        context_.fail(std::string("Unknown format code '") + format.type + "' for object of type 'float'");
      if (value.is_integral() && format.precision >= 0 && (is_integer_type || format.type == '\0')) {
        context_.fail("Precision not allowed in integer format specifier");
      }
      return format_number(context_, value, format);
    }
    if (!value.is_string() && !value.is_bool()) {
      context_.fail("unsupported format string passed to " + value.type_name() + ".__format__");
    }
    if (format.type != '\0' && format.type != 's') {
      context_.fail(std::string("Unknown format code '") + format.type + "' for object of type 'str'");
    }
    if (format.align == '=') context_.fail("'=' alignment not allowed in string format specifier");
    return format_text(context_, context_.str(value), format);
  }

  Format read_spec(const std::string& spec) {
    Format format;
    size_t at = 0;
    auto is_align = [&](size_t i) {
      return i < spec.size() && std::string_view("<>^=").find(spec[i]) != std::string_view::npos;
    };
    size_t fill_size = decode_utf8(spec, 0).num_bytes;
    if (is_align(fill_size)) {
      format.fill = spec.substr(0, fill_size);
      format.align = spec[fill_size];
      at = fill_size + 1;
    } else if (is_align(0)) {
      format.align = spec[at++];
    }
    auto peek = [&] { return at < spec.size() ? spec[at] : '\0'; };
    if (peek() == '+' || peek() == '-' || peek() == ' ') format.sign = spec[at++];
    if (peek() == '#') format.is_alternate = true, ++at;
    if (peek() == '0') {
      ++at;
      if (!format.align) format.fill = "0", format.align = '=';
    }
    format.width = std::max<int64_t>(read_number(context_, spec, at), 0);
    if (peek() == ',' || peek() == '_') format.grouping = spec[at++];
    if (peek() == '.') {
      ++at;
      format.precision = read_number(context_, spec, at);
      if (format.precision < 0) context_.fail("Format specifier missing precision");
    }
    if (at < spec.size()) format.type = spec[at++];
    if (at != spec.size() || (format.type != '\0' && std::string_view("bcdeEfFgGnosxX%").find(format.type) ==
                                                         std::string_view::npos)) {
      context_.fail("Invalid format specifier '" + spec + "'");
    }
    return format;
  }

  Context& context_;
  const Value& format_;
  CallArguments& arguments_;
  int64_t next_ = 0;  // of the fields without a number
  bool is_manual_ = false;
};

}  // namespace

Value format_percent(Context& context, const Value& format, const Value& arguments) {
  return PercentFormatter(context, format, arguments).run();
}

Value format_braces(Context& context, const Value& format, CallArguments& arguments) {
  return BraceFormatter(context, format, arguments).run();
}

}  // namespace restkv::chat
