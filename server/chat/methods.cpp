// Methods of strings, lists, tuples, dicts, numbers and cyclers: Python's names and rules. Those that change a container
// are refused before they get here, as in Jinja2's immutable sandbox. Results of a Markup string are Markup again.
#include <algorithm>
#include <cmath>
#include <map>

#include "server/chat/argument_reader.h"
#include "server/chat/string_ops.h"

namespace restkv::chat {
namespace {

using Methods = std::map<std::string, NativeMethod, std::less<>>;

Value like(Context& context, const Value& self, Text text) {
  return context.make_string(std::move(text), self.as_string()->is_markup);
}

Value like_all(Context& context, const Value& self, std::vector<Text> texts) {
  std::vector<Value> items;
  items.reserve(texts.size());
  for (Text& text : texts) items.push_back(Value(std::move(text), self.as_string()->is_markup));
  return context.make_list(std::move(items));
}

const Value& require_string(Context& context, const char* method, const Value& value) {
  context.require_defined(value);
  if (!value.is_string())
    context.fail(std::string(method) + "() argument must be str, not " + value.type_name());
  return value;
}

// Strings --------------------------------------------------------------------------------------------------------------

template <Side side>
Value strip(Context& context, const Value& self, CallArguments& arguments) {
  ArgumentReader reader(context, "strip", arguments);
  Value chars = reader.take("chars", Value());
  reader.finish();
  return like(context, self, strip_text(context, self.text(), chars, side));
}

template <bool from_right>
Value split(Context& context, const Value& self, CallArguments& arguments) {
  ArgumentReader reader(context, from_right ? "rsplit" : "split", arguments);
  Value separator = reader.take("sep", Value());
  int64_t max_splits = reader.take_int("maxsplit", -1);
  reader.finish();
  if (!separator.is_none()) require_string(context, "split", separator);
  const Text* text = separator.is_none() ? nullptr : &separator.text();
  return like_all(context, self,
                  from_right ? split_text_from_right(context, self.text(), text, max_splits)
                             : split_text(context, self.text(), text, max_splits));
}

Value splitlines(Context& context, const Value& self, CallArguments& arguments) {
  ArgumentReader reader(context, "splitlines", arguments);
  bool keep_ends = reader.take_bool("keepends", false);
  reader.finish();
  return like_all(context, self, split_lines(context, self.text(), keep_ends));
}

// The byte offsets of code points start and end of `self`, as find, count and startswith take them.
std::pair<size_t, size_t> byte_bounds(Context& context, const Value& self, const Value& start,
                                      const Value& end) {
  const String& string = *self.as_string();
  int64_t length = static_cast<int64_t>(string.length);
  auto offset_of = [&](const Value& bound, int64_t otherwise) -> size_t {
    int64_t index = otherwise;
    if (!bound.is_none()) {
      if (!bound.is_integral()) context.fail("slice indices must be integers or None");
      index = bound.as_int() < 0
                  ? std::max<int64_t>(bound.as_int() < -length ? 0 : bound.as_int() + length, 0)
                  : bound.as_int();
    }
    if (index > length) return std::string::npos;  // behind the end: nothing is found there
    if (string.is_ascii()) return static_cast<size_t>(index);
    context.charge(1 + index / 64);
    size_t at = 0;
    for (int64_t i = 0; i < index; ++i) at += decode_utf8(self.bytes(), at).num_bytes;
    return at;
  };
  size_t first = offset_of(start, 0);
  size_t last = std::min(offset_of(end, length), self.bytes().size());
  return {first, last};
}

template <bool at_start>
Value has_affix(Context& context, const Value& self, CallArguments& arguments) {
  const char* name = at_start ? "startswith" : "endswith";
  ArgumentReader reader(context, name, arguments);
  Value affix = reader.require("prefix");
  Value start = reader.take("start", Value());
  Value end = reader.take("end", Value());
  reader.finish();
  auto [first, last] = byte_bounds(context, self, start, end);
  if (first == std::string::npos || first > last) return Value(false);
  std::string_view view = std::string_view(self.bytes()).substr(first, last - first);
  auto matches = [&](const Value& candidate) {
    const std::string& text = require_string(context, name, candidate).bytes();
    return at_start ? view.starts_with(text) : view.ends_with(text);
  };
  if (!affix.is_tuple()) return Value(matches(affix));
  for (const Value& candidate : affix.items()) {
    context.charge(1);
    if (matches(candidate)) return Value(true);
  }
  return Value(false);
}

template <bool from_right, bool must_be_there>
Value find(Context& context, const Value& self, CallArguments& arguments) {
  ArgumentReader reader(context, from_right ? "rfind" : "find", arguments);
  Value part = require_string(context, "find", reader.require("sub"));
  Value start = reader.take("start", Value());
  Value end = reader.take("end", Value());
  reader.finish();
  context.charge_bytes(self.bytes().size());
  auto [first, last] = byte_bounds(context, self, start, end);
  size_t found = std::string::npos;
  if (first != std::string::npos && first <= last) {
    std::string_view view = std::string_view(self.bytes()).substr(first, last - first);
    found = part.bytes().empty() ? (from_right ? view.size() : 0)
            : from_right         ? find_last_bytes(view, part.bytes())
                                 : find_bytes(view, part.bytes());
  }
  if (found == std::string::npos) {
    if (must_be_there) context.fail("substring not found");
    return Value(-1);
  }
  return Value(
      static_cast<int64_t>(count_code_points(std::string_view(self.bytes()).substr(0, first + found))));
}

Value count(Context& context, const Value& self, CallArguments& arguments) {
  ArgumentReader reader(context, "count", arguments);
  Value part = require_string(context, "count", reader.require("sub"));
  Value start = reader.take("start", Value());
  Value end = reader.take("end", Value());
  reader.finish();
  context.charge(1 + static_cast<int64_t>(self.bytes().size() / 64));
  auto [first, last] = byte_bounds(context, self, start, end);
  if (first == std::string::npos || first > last) return Value(0);
  std::string_view view = std::string_view(self.bytes()).substr(first, last - first);
  if (part.bytes().empty()) return Value(static_cast<int64_t>(count_code_points(view) + 1));
  int64_t number = 0;
  for (size_t at = find_bytes(view, part.bytes()); at != std::string_view::npos;
       at = find_bytes(view, part.bytes(), at + part.bytes().size())) {
    ++number;
  }
  return Value(number);
}

Value replace(Context& context, const Value& self, CallArguments& arguments) {
  ArgumentReader reader(context, "replace", arguments);
  Value old_part = require_string(context, "replace", reader.require("old"));
  Value new_part = require_string(context, "replace", reader.require("new"));
  int64_t number = reader.take_int("count", -1);
  reader.finish();
  Text replacement = self.as_string()->is_markup ? escape_html(context, new_part) : new_part.text();
  return like(context, self, replace_text(context, self.text(), old_part.text(), replacement, number));
}

Value str_join(Context& context, const Value& self, CallArguments& arguments) {
  ArgumentReader reader(context, "join", arguments);
  SequenceRef items = context.iterate(reader.require("iterable"));
  reader.finish();
  std::vector<Text> parts;
  size_t size = 0;
  for (const Value& item : items->items) {
    if (!item.is_string())
      context.fail("sequence item: expected str instance, " + item.type_name() + " found");
    parts.push_back(self.as_string()->is_markup ? escape_html(context, item) : item.text());
    context.check_size(size += parts.back().size());
  }
  return like(context, self, join_texts(context, self.text(), parts));
}

template <Text (*transform)(Context&, const Text&)>
Value transformed(Context& context, const Value& self, CallArguments& arguments) {
  ArgumentReader(context, "method", arguments).finish();
  return like(context, self, transform(context, self.text()));
}
Text to_lower(Context& context, const Text& text) { return map_case(context, text, Case::kLower); }
Text fold_case(Context& context, const Text& text) { return map_case(context, text, Case::kFold); }
Text to_upper(Context& context, const Text& text) { return map_case(context, text, Case::kUpper); }

template <Side text_side>
Value pad(Context& context, const Value& self, CallArguments& arguments) {
  ArgumentReader reader(context, "ljust", arguments);
  int64_t width = reader.take_int("width", 0);
  Value fill = require_string(context, "ljust", reader.take("fillchar", Value(" ")));
  reader.finish();
  return like(context, self, pad_text(context, self, width, fill.text(), text_side));
}

Value zfill(Context& context, const Value& self, CallArguments& arguments) {
  ArgumentReader reader(context, "zfill", arguments);
  int64_t width = reader.take_int("width", 0);
  reader.finish();
  const std::string& bytes = self.bytes();
  size_t sign = !bytes.empty() && (bytes[0] == '-' || bytes[0] == '+') ? 1 : 0;
  Value rest = Value(self.text().slice(sign, bytes.size()));
  Text out = self.text().slice(0, sign);
  out.append(pad_text(context, rest, width - static_cast<int64_t>(sign), Text("0"), Side::kRight));
  return like(context, self, std::move(out));
}

template <bool at_start>
Value remove_affix(Context& context, const Value& self, CallArguments& arguments) {
  ArgumentReader reader(context, at_start ? "removeprefix" : "removesuffix", arguments);
  Value affix = require_string(context, "removeprefix", reader.require("prefix"));
  reader.finish();
  size_t size = self.bytes().size(), cut = affix.bytes().size();
  if (at_start && self.bytes().starts_with(affix.bytes()))
    return like(context, self, self.text().slice(cut, size));
  if (!at_start && self.bytes().ends_with(affix.bytes()))
    return like(context, self, self.text().slice(0, size - cut));
  return self;
}

template <bool from_right>
Value partition(Context& context, const Value& self, CallArguments& arguments) {
  ArgumentReader reader(context, "partition", arguments);
  Value separator = require_string(context, "partition", reader.require("sep"));
  reader.finish();
  if (separator.bytes().empty()) context.fail("empty separator");
  const std::string& bytes = self.bytes();
  context.charge_bytes(bytes.size());
  size_t at = from_right ? find_last_bytes(bytes, separator.bytes()) : find_bytes(bytes, separator.bytes());
  Value empty = like(context, self, Text());
  if (at == std::string::npos) {
    if (from_right) return context.make_tuple({empty, empty, self});
    return context.make_tuple({self, empty, empty});
  }
  size_t behind = at + separator.bytes().size();
  return context.make_tuple({like(context, self, self.text().slice(0, at)),
                             like(context, self, self.text().slice(at, behind)),
                             like(context, self, self.text().slice(behind, bytes.size()))});
}

template <bool (*in_class)(uint32_t)>
Value all_in(Context& context, const Value& self, CallArguments& arguments) {
  ArgumentReader(context, "is...", arguments).finish();
  const std::string& bytes = self.bytes();
  context.charge(1 + static_cast<int64_t>(bytes.size() / 64));
  for (size_t at = 0; at < bytes.size();) {
    CodePoint point = decode_utf8(bytes, at);
    if (!in_class(point.code)) return Value(false);
    at += point.num_bytes;
  }
  return Value(!bytes.empty());
}

Value is_ascii(Context& context, const Value& self, CallArguments& arguments) {
  ArgumentReader(context, "isascii", arguments).finish();
  return Value(std::all_of(self.bytes().begin(), self.bytes().end(), [](char c) { return (c & 0x80) == 0; }));
}
Value is_printable_text(Context& context, const Value& self, CallArguments& arguments) {
  return Value(self.bytes().empty() || all_in<is_printable>(context, self, arguments).as_bool());
}
Value is_identifier(Context& context, const Value& self, CallArguments& arguments) {
  return Value(all_in<is_identifier_part>(context, self, arguments).as_bool() &&
               is_identifier_start(decode_utf8(self.bytes(), 0).code));
}
template <bool upper>
Value has_case(Context& context, const Value& self, CallArguments& arguments) {
  return Value(apply_test(context, upper ? "upper" : "lower", self, arguments));
}
Value is_title(Context& context, const Value& self, CallArguments& arguments) {
  ArgumentReader(context, "istitle", arguments).finish();
  Text lower = map_case(context, self.text(), Case::kLower);
  Text upper = map_case(context, self.text(), Case::kUpper);
  bool has_letters = lower.bytes() != upper.bytes();
  return Value(has_letters && title_text(context, self.text()).bytes() == self.bytes());
}

Value expand_tabs(Context& context, const Value& self, CallArguments& arguments) {
  ArgumentReader reader(context, "expandtabs", arguments);
  int64_t size = reader.take_int("tabsize", 8);
  reader.finish();
  const Text& text = self.text();
  context.charge(1 + static_cast<int64_t>(text.size() / 64));
  Text out;
  int64_t column = 0;
  for (size_t at = 0; at < text.size();) {
    size_t end = at + decode_utf8(text.bytes(), at).num_bytes;
    char c = text.bytes()[at];
    if (c == '\t') {
      int64_t blanks = size > 0 ? size - column % size : 0;
      context.check_size(out.size() + static_cast<size_t>(blanks));
      out.append(std::string(blanks, ' '), text.is_user_at(at));
      column += blanks;
    } else {
      out.append(text, at, end);
      column = c == '\n' || c == '\r' ? 0 : column + 1;
    }
    at = end;
  }
  return like(context, self, std::move(out));
}

Value format(Context& context, const Value& self, CallArguments& arguments) {
  return format_braces(context, self, arguments);
}
Value format_map(Context& context, const Value& self, CallArguments& arguments) {
  ArgumentReader reader(context, "format_map", arguments);
  Value mapping = reader.require("mapping");
  reader.finish();
  if (!mapping.is_dict()) context.fail("format_map() needs a mapping, not " + mapping.type_name());
  CallArguments fields;
  for (const auto& [name, value] : mapping.as_dict()->entries()) {
    context.charge(1);
    if (name.is_string()) fields.keyword.emplace_back(name.bytes(), value);
  }
  return format_braces(context, self, fields);
}

// Containers -----------------------------------------------------------------------------------------------------------

Value list_count(Context& context, const Value& self, CallArguments& arguments) {
  ArgumentReader reader(context, "count", arguments);
  Value wanted = reader.require("value");
  reader.finish();
  int64_t number = 0;
  for (const Value& item : context.each(self)) number += context.equal(item, wanted);
  return Value(number);
}

Value list_index(Context& context, const Value& self, CallArguments& arguments) {
  ArgumentReader reader(context, "index", arguments);
  Value wanted = reader.require("value");
  SequenceRef items = context.iterate(self);
  int64_t size = static_cast<int64_t>(items->items.size());
  int64_t start = reader.take_int("start", 0);
  int64_t stop = reader.take_int("stop", size);
  reader.finish();
  auto clamp = [&](int64_t at) { return std::clamp<int64_t>(at < 0 ? at + size : at, 0, size); };
  for (int64_t i = clamp(std::max(start, -size)); i < clamp(std::max(stop, -size)); ++i) {
    if (context.equal(items->items[i], wanted)) return Value(i);
  }
  context.fail(context.repr(wanted).bytes() + " is not in list");
}

Value copy(Context& context, const Value& self, CallArguments& arguments) {
  ArgumentReader(context, "copy", arguments).finish();
  return self.is_dict() ? context.make_dict(*self.as_dict()) : context.make_list(self.items());
}

Value dict_get(Context& context, const Value& self, CallArguments& arguments) {
  if (!arguments.keyword.empty()) context.fail("dict.get() takes no keyword arguments");
  ArgumentReader reader(context, "get", arguments);
  Value key = reader.require("key");
  Value otherwise = reader.take("default", Value());
  reader.finish();
  if (key.is_list() || key.is_dict()) context.fail("unhashable type: '" + key.type_name() + "'");
  const Value* value = self.as_dict()->find(key);
  return value ? *value : otherwise;
}

template <ViewObject::What what>
Value dict_view(Context& context, const Value& self, CallArguments& arguments) {
  ArgumentReader(context, "items", arguments).finish();
  return ObjectRef(std::make_shared<ViewObject>(self.as_dict(), what));
}

Value is_integer(Context& context, const Value& self, CallArguments& arguments) {
  ArgumentReader(context, "is_integer", arguments).finish();
  return Value(!self.is_float() || std::floor(self.as_float()) == self.as_float());
}

Value cycler_next(Context& context, const Value& self, CallArguments& arguments) {
  ArgumentReader(context, "next", arguments).finish();
  auto* cycler = mutable_object_as<CyclerObject>(self, ObjectKind::kCycler);
  Value value = cycler->choices->items[cycler->position];
  cycler->position = (cycler->position + 1) % cycler->choices->items.size();
  return value;
}
Value cycler_reset(Context& context, const Value& self, CallArguments& arguments) {
  ArgumentReader(context, "reset", arguments).finish();
  mutable_object_as<CyclerObject>(self, ObjectKind::kCycler)->position = 0;
  return Value();
}

Value loop_cycle(Context& context, const Value& self, CallArguments& arguments) {
  if (arguments.positional.empty()) context.fail("no items for cycling given");
  auto* loop = object_as<LoopObject>(self, ObjectKind::kLoop);
  return arguments.positional[static_cast<size_t>(loop->index0) % arguments.positional.size()];
}
Value loop_changed(Context& context, const Value& self, CallArguments& arguments) {
  auto* loop = mutable_object_as<LoopObject>(self, ObjectKind::kLoop);
  Value now = context.make_tuple(arguments.positional);
  if (loop->has_changed && context.equal(Value::tuple(loop->last_changed), now)) return Value(false);
  for (const Value& value : arguments.positional) {
    if (value.nesting() > 1) context.fail("loop.changed() takes plain values only");
  }
  loop->last_changed = arguments.positional;
  loop->has_changed = true;
  return Value(true);
}

const Methods& methods_of(const Value& self) {
  static const Methods kNone;
  static const Methods kString = {
      {"strip", strip<Side::kBoth>},
      {"lstrip", strip<Side::kLeft>},
      {"rstrip", strip<Side::kRight>},
      {"split", split<false>},
      {"rsplit", split<true>},
      {"splitlines", splitlines},
      {"startswith", has_affix<true>},
      {"endswith", has_affix<false>},
      {"find", find<false, false>},
      {"rfind", find<true, false>},
      {"index", find<false, true>},
      {"rindex", find<true, true>},
      {"count", count},
      {"replace", replace},
      {"join", str_join},
      {"lower", transformed<to_lower>},
      {"casefold", transformed<fold_case>},
      {"upper", transformed<to_upper>},
      {"capitalize", transformed<capitalize_text>},
      {"title", transformed<title_text>},
      {"swapcase", transformed<swap_case>},
      {"ljust", pad<Side::kLeft>},
      {"rjust", pad<Side::kRight>},
      {"center", pad<Side::kBoth>},
      {"zfill", zfill},
      {"removeprefix", remove_affix<true>},
      {"removesuffix", remove_affix<false>},
      {"partition", partition<false>},
      {"rpartition", partition<true>},
      {"isalpha", all_in<is_alpha>},
      {"isalnum", all_in<is_alnum>},
      {"isdecimal", all_in<is_decimal>},
      {"isdigit", all_in<is_digit>},
      {"isnumeric", all_in<is_numeric>},
      {"isspace", all_in<is_space>},
      {"isascii", is_ascii},
      {"isprintable", is_printable_text},
      {"isidentifier", is_identifier},
      {"islower", has_case<false>},
      {"isupper", has_case<true>},
      {"istitle", is_title},
      {"expandtabs", expand_tabs},
      {"format", format},
      {"format_map", format_map},
  };
  static const Methods kTuple = {{"count", list_count}, {"index", list_index}};
  static const Methods kList = {{"count", list_count}, {"index", list_index}, {"copy", copy}};
  static const Methods kDict = {{"get", dict_get},
                                {"keys", dict_view<ViewObject::What::kKeys>},
                                {"values", dict_view<ViewObject::What::kValues>},
                                {"items", dict_view<ViewObject::What::kItems>},
                                {"copy", copy}};
  static const Methods kFloat = {{"is_integer", is_integer}};
  static const Methods kCycler = {{"next", cycler_next}, {"reset", cycler_reset}};
  static const Methods kLoop = {{"cycle", loop_cycle}, {"changed", loop_changed}};
  if (self.is_string()) return kString;
  if (self.is_list()) return kList;
  if (self.is_tuple() || object_as<RangeObject>(self, ObjectKind::kRange)) return kTuple;
  if (self.is_dict()) return kDict;
  if (self.is_float()) return kFloat;
  if (object_as<CyclerObject>(self, ObjectKind::kCycler)) return kCycler;
  if (object_as<LoopObject>(self, ObjectKind::kLoop)) return kLoop;
  return kNone;
}

}  // namespace

bool find_method(const Value& self, std::string_view name, Value& method) {
  const Methods& methods = methods_of(self);
  auto found = methods.find(name);
  if (found == methods.end()) return false;
  method = ObjectRef(std::make_shared<MethodObject>(self, found->first.c_str(), found->second));
  return true;
}

}  // namespace restkv::chat
