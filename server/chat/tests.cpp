// "is" tests: Jinja2's built-in ones.
#include <cmath>
#include <map>

#include "server/chat/argument_reader.h"
#include "server/chat/unicode_classes.h"

namespace restkv::chat {
namespace {

// Whether all letters with a case have `wanted`, and there is one.
bool has_case(const Text& text, Case wanted) {
  bool found = false;
  for (size_t at = 0; at < text.size();) {
    CodePoint point = decode_utf8(text.bytes(), at);
    bool is_upper = changes_case(point.code, Case::kLower);
    bool is_lower = !is_upper && changes_case(point.code, Case::kUpper);
    if (wanted == Case::kLower ? is_upper : is_lower) return false;
    found |= wanted == Case::kLower ? is_lower : is_upper;
    at += point.num_bytes;
  }
  return found;
}

int64_t remainder_of(Context& context, const Value& value, const Value& by) {
  Value remainder = context.apply(Operator::kModulo, value, by);
  if (!remainder.is_number()) return 1;
  return remainder.as_float() == 0 ? 0 : remainder.as_float() == 1 ? 1 : 2;
}

using Test = bool (*)(Context&, const Value&);

const std::map<std::string, Test, std::less<>>& simple_tests() {
  static const std::map<std::string, Test, std::less<>> kTests = {
      {"defined", [](Context&, const Value& v) { return !v.is_undefined(); }},
      {"undefined", [](Context&, const Value& v) { return v.is_undefined(); }},
      {"none", [](Context&, const Value& v) { return v.is_none(); }},
      {"boolean", [](Context&, const Value& v) { return v.is_bool(); }},
      {"true", [](Context&, const Value& v) { return v.is_bool() && v.as_bool(); }},
      {"false", [](Context&, const Value& v) { return v.is_bool() && !v.as_bool(); }},
      {"integer", [](Context&, const Value& v) { return v.is_int(); }},
      {"float", [](Context&, const Value& v) { return v.is_float(); }},
      {"number", [](Context&, const Value& v) { return v.is_number(); }},
      {"string", [](Context&, const Value& v) { return v.is_string(); }},
      {"mapping", [](Context&, const Value& v) { return v.is_dict(); }},
      {"sequence",
       [](Context&, const Value& v) {
         return v.is_undefined() || v.is_string() || v.is_sequence() || v.is_dict() ||
                object_as<RangeObject>(v, ObjectKind::kRange);
       }},
      {"iterable", [](Context& c, const Value& v) { return c.is_iterable(v); }},
      {"callable",
       [](Context&, const Value& v) {
         if (!v.is_object()) return v.is_undefined();
         ObjectKind kind = v.as_object()->kind;
         return kind == ObjectKind::kFunction || kind == ObjectKind::kMethod || kind == ObjectKind::kMacro ||
                kind == ObjectKind::kLoop || kind == ObjectKind::kJoiner;
       }},
      {"escaped", [](Context&, const Value& v) { return v.is_string() && v.as_string()->is_markup; }},
      {"lower", [](Context& c, const Value& v) { return has_case(c.str(v), Case::kLower); }},
      {"upper", [](Context& c, const Value& v) { return has_case(c.str(v), Case::kUpper); }},
      {"odd", [](Context& c, const Value& v) { return remainder_of(c, v, Value(2)) == 1; }},
      {"even", [](Context& c, const Value& v) { return remainder_of(c, v, Value(2)) == 0; }},
      {"filter", [](Context&, const Value& v) { return v.is_string() && find_filter(v.bytes()) != nullptr; }},
      {"test", [](Context&, const Value& v) { return v.is_string() && has_test(v.bytes()); }},
  };
  return kTests;
}

const std::map<std::string, Operator, std::less<>>& comparisons() {
  static const std::map<std::string, Operator, std::less<>> kComparisons = {
      {"==", Operator::kEqual},        {"eq", Operator::kEqual},
      {"equalto", Operator::kEqual},   {"!=", Operator::kNotEqual},
      {"ne", Operator::kNotEqual},     {">", Operator::kGreater},
      {"gt", Operator::kGreater},      {"greaterthan", Operator::kGreater},
      {">=", Operator::kGreaterEqual}, {"ge", Operator::kGreaterEqual},
      {"<", Operator::kLess},          {"lt", Operator::kLess},
      {"lessthan", Operator::kLess},   {"<=", Operator::kLessEqual},
      {"le", Operator::kLessEqual},    {"in", Operator::kIn},
  };
  return kComparisons;
}

}  // namespace

bool has_test(std::string_view name) {
  return name == "divisibleby" || name == "sameas" || simple_tests().contains(name) ||
         comparisons().contains(name);
}

bool apply_test(Context& context, const std::string& name, const Value& subject, CallArguments& arguments) {
  ArgumentReader reader(context, name.c_str(), arguments);
  if (auto found = simple_tests().find(name); found != simple_tests().end()) {
    reader.finish();
    if (subject.is_string()) context.charge(static_cast<int64_t>(subject.bytes().size() / 1024));
    return found->second(context, subject);
  }
  if (!has_test(name)) context.fail("No test named '" + name + "'.");
  Value other = reader.require(name == "divisibleby" ? "num" : name == "in" ? "seq" : "other");
  reader.finish();
  if (name == "divisibleby") return remainder_of(context, subject, other) == 0;
  if (name == "sameas") return subject.is_same(other);
  return context.truth(context.apply(comparisons().find(name)->second, subject, other));
}

}  // namespace restkv::chat
