// Filters of text and numbers, with Jinja2's names, arguments and quirks (autoescape off).
#include "server/chat/filters.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>

#include "server/chat/argument_reader.h"
#include "server/chat/string_ops.h"

namespace restkv::chat {
namespace {

// What soft_str gives: strings stay what they are, Markup too.
Value soft_string(Context& context, const Value& value) {
  return value.is_string() ? value : context.make_string(context.str(value));
}

Value like(Context& context, const Value& model, Text text) {
  return context.make_string(std::move(text), model.as_string()->is_markup);
}

template <Text (*transform)(Context&, const Text&)>
Value transformed(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader(context, "filter", arguments).finish();
  Value string = soft_string(context, subject);
  return like(context, string, transform(context, string.text()));
}
Text to_lower(Context& context, const Text& text) { return map_case(context, text, Case::kLower); }
Text to_upper(Context& context, const Text& text) { return map_case(context, text, Case::kUpper); }

// Words begin behind white space and - ( { [ <, unlike str.title.
Text title(Context& context, const Text& text) {
  const std::string& bytes = text.bytes();
  context.charge(1 + static_cast<int64_t>(bytes.size() / 64));
  Text out;
  size_t begin = 0;
  bool starts_word = true;
  for (size_t at = 0; at < bytes.size();) {
    CodePoint point = decode_utf8(bytes, at);
    bool splits = is_space(point.code) ||
                  (point.code < 0x80 &&
                   std::string_view("-({[<").find(static_cast<char>(point.code)) != std::string_view::npos);
    size_t end = at + point.num_bytes;
    if (splits || starts_word) {
      out.append(map_case(context, text.slice(begin, at), Case::kLower));
      out.append(splits ? text.slice(at, end) : map_case(context, text.slice(at, end), Case::kUpper));
      begin = end;
    }
    starts_word = splits;
    at = end;
  }
  out.append(map_case(context, text.slice(begin, bytes.size()), Case::kLower));
  return out;
}

Value trim(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader reader(context, "trim", arguments);
  Value chars = reader.take("chars", Value());
  reader.finish();
  Value string = soft_string(context, subject);
  return like(context, string, strip_text(context, string.text(), chars, Side::kBoth));
}

Value replace(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader reader(context, "replace", arguments);
  Text old_part = context.str(reader.require("old"));
  Text new_part = context.str(reader.require("new"));
  Value count = reader.take("count", Value());
  reader.finish();
  if (!count.is_none() && !count.is_integral()) context.fail("replace(): 'count' must be an integer");
  return context.make_string(
      replace_text(context, context.str(subject), old_part, new_part, count.is_none() ? -1 : count.as_int()));
}

Value string(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader(context, "string", arguments).finish();
  return soft_string(context, subject);
}

Value safe(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader(context, "safe", arguments).finish();
  return context.make_string(context.str(subject), true);
}

Value escape(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader(context, "escape", arguments).finish();
  return context.make_string(escape_html(context, subject), true);
}

Value force_escape(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader(context, "forceescape", arguments).finish();
  return context.make_string(escape_html(context, Value(context.str(subject))), true);
}

Value tojson(Context& context, const Value& subject, CallArguments& arguments) {
  return context.make_string(dump_json(context, subject, arguments));
}

Value default_filter(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader reader(context, "default", arguments);
  Value otherwise = reader.take("default_value", Value(""));
  bool for_false = reader.take_bool("boolean", false);
  reader.finish();
  return subject.is_undefined() || (for_false && !context.truth(subject)) ? otherwise : subject;
}

Value format(Context& context, const Value& subject, CallArguments& arguments) {
  if (!arguments.positional.empty() && !arguments.keyword.empty()) {
    context.fail("format(): can't handle positional and keyword arguments at the same time");
  }
  Value values = context.make_tuple(arguments.positional);
  if (!arguments.keyword.empty()) {
    Dict dict;
    for (auto& [name, value] : arguments.keyword) context.set_entry(dict, Value(name), value);
    values = context.make_dict(std::move(dict));
  }
  return format_percent(context, soft_string(context, subject), values);
}

Value indent(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader reader(context, "indent", arguments);
  Value width = reader.take("width", Value(4));
  bool first = reader.take_bool("first", false);
  bool blank = reader.take_bool("blank", false);
  reader.finish();
  context.require_defined(subject);
  if (!subject.is_string()) context.fail("indent() needs a string, not " + subject.type_name());
  Text indention;
  if (width.is_string()) {
    indention = width.text();
  } else if (width.is_integral()) {
    context.check_size(static_cast<size_t>(std::max<int64_t>(width.as_int(), 0)));
    indention = Text(std::string(std::max<int64_t>(width.as_int(), 0), ' '));
  } else {
    context.fail("indent(): 'width' must be an integer or a string");
  }
  Text source = subject.text();
  source.append("\n");
  std::vector<Text> lines = split_lines(context, source, false);
  Text out;
  if (first) out.append(indention);
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) {
      out.append("\n");
      if (blank || !lines[i].empty()) out.append(indention);
    }
    out.append(lines[i]);
    context.check_size(out.size());
    context.charge_bytes(indention.size());
  }
  return like(context, subject, std::move(out));
}

Value truncate(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader reader(context, "truncate", arguments);
  int64_t length = reader.take_int("length", 255);
  bool kill_words = reader.take_bool("killwords", false);
  Value end = reader.take("end", Value("..."));
  Value leeway = reader.take("leeway", Value());
  reader.finish();
  if (!end.is_string()) context.fail("truncate() needs a string as end");
  int64_t end_length = static_cast<int64_t>(end.as_string()->length);
  int64_t slack = leeway.is_integral() ? leeway.as_int() : 5;
  if (length < end_length) context.fail("truncate(): expected length >= " + std::to_string(end_length));
  if (slack < 0) context.fail("truncate(): expected leeway >= 0");
  int64_t size = context.length(subject);
  if (size <= slack || size - slack <= length) return subject;
  if (!subject.is_string()) context.fail("truncate() needs a string");
  Value cut = context.get_slice(subject, Value(), Value(length - end_length), Value());
  if (!kill_words) {
    Text blank(" ");
    cut = like(context, subject, split_text_from_right(context, cut.text(), &blank, 1)[0]);
  }
  return context.apply(Operator::kAdd, cut, end);
}

Value center(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader reader(context, "center", arguments);
  int64_t width = reader.take_int("width", 80);
  reader.finish();
  Value string = soft_string(context, subject);
  return like(context, string, pad_text(context, string, width, Text(" "), Side::kBoth));
}

Value wordcount(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader(context, "wordcount", arguments).finish();
  Text text = context.str(subject);
  context.charge(1 + static_cast<int64_t>(text.size() / 64));
  int64_t words = 0;
  bool in_word = false;
  for (size_t at = 0; at < text.size();) {
    CodePoint point = decode_utf8(text.bytes(), at);
    bool is_word = point.code == '_' || is_alnum(point.code);
    words += is_word && !in_word;
    in_word = is_word;
    at += point.num_bytes;
  }
  return Value(words);
}

void quote_url(const Text& text, bool is_query, Text& out) {
  const std::string& bytes = text.bytes();
  for (size_t at = 0; at < bytes.size(); ++at) {
    char c = bytes[at];
    bool is_user = text.has_user() && text.is_user_at(at);
    bool is_plain = (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') ||
                    std::string_view("_.-~").find(c) != std::string_view::npos || (c == '/' && !is_query);
    if (is_plain) {
      out.append(std::string_view(&c, 1), is_user);
    } else if (c == ' ' && is_query) {
      out.append("+", is_user);
    } else {
      constexpr std::string_view kHex = "0123456789ABCDEF";
      const char quoted[] = {'%', kHex[static_cast<uint8_t>(c) >> 4], kHex[static_cast<uint8_t>(c) & 15]};
      out.append(std::string_view(quoted, 3), is_user);
    }
  }
}

Value urlencode(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader(context, "urlencode", arguments).finish();
  Text out;
  auto quote = [&](const Value& value, bool is_query) {
    Text text = context.str(value);
    context.charge(1 + static_cast<int64_t>(text.size() / 32));
    quote_url(text, is_query, out);
    context.check_size(out.size());
  };
  if (subject.is_string() || !context.is_iterable(subject)) {
    quote(subject, false);
    return context.make_string(std::move(out));
  }
  std::vector<std::pair<Value, Value>> pairs;
  if (subject.is_dict()) {
    pairs = subject.as_dict()->entries();
  } else {
    for (const Value& item : context.each(subject)) {
      SequenceRef pair = context.iterate(item);
      if (pair->items.size() != 2) context.fail("urlencode() needs pairs");
      pairs.emplace_back(pair->items[0], pair->items[1]);
    }
  }
  for (size_t i = 0; i < pairs.size(); ++i) {
    if (i > 0) out.append("&");
    quote(pairs[i].first, true);
    out.append("=");
    quote(pairs[i].second, true);
  }
  return context.make_string(std::move(out));
}

// ' key="value"' of all entries that have a value; keys are what the template says, values what anybody may.
Value xmlattr(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader reader(context, "xmlattr", arguments);
  const bool has_space_before = reader.take_bool("autospace", true);
  reader.finish();
  context.require_defined(subject);
  if (!subject.is_dict()) context.fail("xmlattr needs a mapping, not " + subject.type_name());
  Text out;
  for (const auto& [key, value] : subject.as_dict()->entries()) {
    context.charge(1);
    if (value.is_none() || value.is_undefined()) continue;
    if (!key.is_string()) context.fail("xmlattr needs names that are strings, not " + key.type_name());
    if (key.bytes().find_first_of(" \t\n\r\f\v/>=") != std::string::npos)
      context.fail("Invalid character in attribute name");
    if (has_space_before || out.size() > 0) out.append(" ");
    out.append(escape_html(context, key));
    out.append("=\"");
    out.append(escape_html(context, value));
    out.append("\"");
    context.check_size(out.size());
  }
  return context.make_string(std::move(out));
}

Value striptags(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader(context, "striptags", arguments).finish();
  Text text = context.str(subject);
  auto remove = [&](std::string_view open, std::string_view close) {
    Text kept;
    size_t copied = 0;
    const std::string& bytes = text.bytes();
    for (size_t at = bytes.find(open); at != std::string::npos; at = bytes.find(open, copied)) {
      context.charge(1);
      size_t end = bytes.find(close, at);
      if (end == std::string::npos) break;
      kept.append(text, copied, at);
      copied = end + close.size();
    }
    kept.append(text, copied, bytes.size());
    text = std::move(kept);
  };
  remove("<!--", "-->");
  remove("<", ">");
  text = join_texts(context, Text(" "), split_text(context, text, nullptr, -1));
  constexpr std::pair<std::string_view, std::string_view> kEntities[] = {
      {"&lt;", "<"}, {"&gt;", ">"}, {"&quot;", "\""}, {"&#34;", "\""}, {"&#39;", "'"}, {"&amp;", "&"}};
  for (const auto& [entity, character] : kEntities) {
    text = replace_text(context, text, Text(std::string(entity)),
                        Text(std::string(character), text.has_user()), -1);
  }
  return context.make_string(std::move(text));
}

Value file_size_format(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader reader(context, "filesizeformat", arguments);
  bool is_binary = reader.take_bool("binary", false);
  reader.finish();
  if (!subject.is_number()) context.fail("filesizeformat() needs a number");
  double bytes = subject.as_float(), base = is_binary ? 1024 : 1000, unit = base;
  if (bytes == 1) return Value("1 Byte");
  if (bytes < base) return Value(std::to_string(static_cast<int64_t>(bytes)) + " Bytes");
  constexpr std::string_view kPrefixes = "kMGTPEZY";
  size_t which = 0;
  while (which + 1 < kPrefixes.size() && bytes >= unit * base) unit *= base, ++which;
  char text[64];
  std::snprintf(text, sizeof(text), "%.1f ", bytes / unit);
  std::string prefix(1, kPrefixes[which]);
  return Value(text + (is_binary ? (which == 0 ? "K" : prefix) + "i" : prefix) + "B");
}

// Numbers --------------------------------------------------------------------------------------------------------------

// Python's float(str): blanks around, underscores between digits, inf and nan.
bool parse_float(const std::string& source, double& number) {
  std::string text;
  for (size_t i = 0; i < source.size(); ++i) {
    bool between_digits = i > 0 && i + 1 < source.size() &&
                          std::isdigit(static_cast<uint8_t>(source[i - 1])) &&
                          std::isdigit(static_cast<uint8_t>(source[i + 1]));
    if (source[i] == '_' && between_digits) continue;
    text += source[i];
  }
  if (text.empty() || text.find_first_of("xXpP") != std::string::npos || text.find('(') != std::string::npos)
    return false;
  char* end = nullptr;
  number = std::strtod(text.c_str(), &end);
  return end == text.c_str() + text.size();
}

bool parse_int(const std::string& source, int64_t base, int64_t& number) {
  std::string text;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '_' && i > 0 && i + 1 < source.size() && source[i - 1] != '_') continue;
    text += source[i];
  }
  bool is_negative = !text.empty() && text[0] == '-';
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) text.erase(0, 1);
  std::string start = text.substr(0, 2);
  auto is_prefix = [&](int64_t of, const char* lower, const char* upper) {
    return (base == of || base == 0) && (start == lower || start == upper);
  };
  int64_t found = is_prefix(16, "0x", "0X")  ? 16
                  : is_prefix(8, "0o", "0O") ? 8
                  : is_prefix(2, "0b", "0B") ? 2
                                             : 0;
  if (found != 0) text.erase(0, 2);
  int64_t used = found != 0 ? found : base == 0 ? 10 : base;
  if (text.empty() || used < 2 || used > 36 || text[0] == '-') return false;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, static_cast<int>(used));
  if (error != std::errc() || end != text.data() + text.size()) return false;
  if (is_negative) number = -number;
  return true;
}

std::string stripped(Context& context, const Value& value) {
  return strip_text(context, value.text(), Value(), Side::kBoth).bytes();
}

bool float_to_int(double number, int64_t& result) {
  if (!(std::fabs(number) < 9.2e18)) return false;
  result = static_cast<int64_t>(number);
  return true;
}

Value int_filter(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader reader(context, "int", arguments);
  Value otherwise = reader.take("default", Value(0));
  int64_t base = reader.take_int("base", 10);
  reader.finish();
  context.require_defined(subject);
  if (subject.is_integral()) return Value(subject.as_int());
  int64_t number = 0;
  double real = 0;
  if (subject.is_float()) return float_to_int(subject.as_float(), number) ? Value(number) : otherwise;
  if (!subject.is_string()) return otherwise;
  std::string text = stripped(context, subject);
  if (parse_int(text, base, number)) return Value(number);
  if (parse_float(text, real) && float_to_int(real, number)) return Value(number);
  return otherwise;
}

Value float_filter(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader reader(context, "float", arguments);
  Value otherwise = reader.take("default", Value(0.0));
  reader.finish();
  context.require_defined(subject);
  if (subject.is_number()) return Value(subject.as_float());
  double number = 0;
  if (subject.is_string() && parse_float(stripped(context, subject), number)) return Value(number);
  return otherwise;
}

Value abs_filter(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader(context, "abs", arguments).finish();
  context.require_defined(subject);
  if (!subject.is_number()) context.fail("bad operand type for abs(): '" + subject.type_name() + "'");
  if (subject.is_float()) return Value(std::fabs(subject.as_float()));
  return subject.as_int() < 0 ? context.negate(subject) : Value(subject.as_int());
}

// Python rounds to even, from the exact decimal value.
double round_half_even(double number, int64_t precision) {
  if (!std::isfinite(number) || precision > 300) return number;
  if (precision < 0) {
    double scale = std::pow(10.0, static_cast<double>(-precision));
    return std::isfinite(scale) ? std::nearbyint(number / scale) * scale : 0.0;
  }
  char text[800];
  std::snprintf(text, sizeof(text), "%.*f", static_cast<int>(precision), number);
  return std::strtod(text, nullptr);
}

Value round_filter(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader reader(context, "round", arguments);
  int64_t precision = reader.take_int("precision", 0);
  Value method = reader.take("method", Value("common"));
  reader.finish();
  context.require_defined(subject);
  if (!subject.is_number()) context.fail("round() needs a number, not " + subject.type_name());
  std::string name = context.str(method).bytes();
  if (name == "common") {
    if (subject.is_float()) return Value(round_half_even(subject.as_float(), precision));
    if (precision >= 0) return Value(subject.as_int());
    int64_t rounded = 0;
    float_to_int(round_half_even(subject.as_float(), precision), rounded);
    return Value(rounded);
  }
  if (name != "ceil" && name != "floor") context.fail("round(): method must be common, ceil or floor");
  double scale = std::pow(10.0, static_cast<double>(precision));
  double scaled = subject.as_float() * scale;
  double whole = name == "ceil" ? std::ceil(scaled) : std::floor(scaled);
  return Value(whole / scale);
}

}  // namespace

const FilterTable& text_filters() {
  static const FilterTable kFilters = {
      {"lower", transformed<to_lower>},
      {"upper", transformed<to_upper>},
      {"capitalize", transformed<capitalize_text>},
      {"title", transformed<title>},
      {"trim", trim},
      {"replace", replace},
      {"string", string},
      {"safe", safe},
      {"e", escape},
      {"escape", escape},
      {"forceescape", force_escape},
      {"tojson", tojson},
      {"default", default_filter},
      {"d", default_filter},
      {"format", format},
      {"indent", indent},
      {"truncate", truncate},
      {"center", center},
      {"wordcount", wordcount},
      {"urlencode", urlencode},
      {"striptags", striptags},
      {"xmlattr", xmlattr},
      {"filesizeformat", file_size_format},
      {"int", int_filter},
      {"float", float_filter},
      {"abs", abs_filter},
      {"round", round_filter},
  };
  return kFilters;
}

Filter find_filter(std::string_view name) {
  for (const FilterTable* table : {&text_filters(), &sequence_filters()}) {
    if (auto found = table->find(name); found != table->end()) return found->second;
  }
  return nullptr;
}

Value apply_filter(Context& context, const std::string& name, const Value& subject,
                   CallArguments& arguments) {
  Filter filter = find_filter(name);
  if (!filter) context.fail("No filter named '" + name + "'.");
  return filter(context, subject, arguments);
}

}  // namespace restkv::chat
