// Arithmetic, comparison and membership as Python has them: / is true division, // and % floor, and a comparison of
// kinds without an order is an error. Integers have 64 bits; beyond them is an error too.
#include <cmath>
#include <limits>

#include "server/chat/context.h"

namespace restkv::chat {
namespace {

const char* operator_text(Operator op) {
  switch (op) {
    case Operator::kAdd: return "+";
    case Operator::kSubtract: return "-";
    case Operator::kMultiply: return "*";
    case Operator::kDivide: return "/";
    case Operator::kFloorDivide: return "//";
    case Operator::kModulo: return "%";
    case Operator::kPower: return "**";
    case Operator::kEqual: return "==";
    case Operator::kNotEqual: return "!=";
    case Operator::kLess: return "<";
    case Operator::kLessEqual: return "<=";
    case Operator::kGreater: return ">";
    case Operator::kGreaterEqual: return ">=";
    case Operator::kIn: return "in";
    case Operator::kNotIn: return "not in";
  }
  return "?";
}

double floor_modulo(double a, double b) {
  double remainder = std::fmod(a, b);
  if (remainder != 0 && (remainder < 0) != (b < 0)) remainder += b;
  return remainder == 0 ? std::copysign(0.0, b) : remainder;
}

double floor_divide(double a, double b) {
  double remainder = std::fmod(a, b);
  double quotient = (a - remainder) / b;
  if (remainder != 0 && (remainder < 0) != (b < 0)) quotient -= 1;
  if (quotient == 0) return std::copysign(0.0, a / b);
  double floored = std::floor(quotient);
  return quotient - floored > 0.5 ? floored + 1 : floored;
}

}  // namespace

Text escape_html(Context& context, const Value& value) {
  Text text = context.str(value);
  if (value.is_string() && value.as_string()->is_markup) return text;
  context.charge_bytes(text.size());
  Text out;
  const std::string& bytes = text.bytes();
  size_t begin = 0;
  for (size_t at = 0; at < bytes.size(); ++at) {
    const char* entity = nullptr;
    switch (bytes[at]) {
      case '&': entity = "&amp;"; break;
      case '<': entity = "&lt;"; break;
      case '>': entity = "&gt;"; break;
      case '"': entity = "&#34;"; break;
      case '\'': entity = "&#39;"; break;
      default: continue;
    }
    out.append(text, begin, at);
    out.append(entity, text.is_user_at(at));
    begin = at + 1;
    context.check_size(out.size());
  }
  out.append(text, begin, bytes.size());
  return out;
}

bool Context::equal(const Value& a, const Value& b) {
  int64_t budget = fuel_;
  bool result = equal_values(a, b, budget);
  charge(fuel_ - budget);
  if (a.is_string() && b.is_string()) charge(static_cast<int64_t>(a.bytes().size() / 4096));
  return result;
}

bool Context::less(const Value& a, const Value& b) {
  charge(1);
  require_defined(a);
  require_defined(b);
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral()) return a.as_int() < b.as_int();
    return a.as_float() < b.as_float();
  }
  // Bytes of UTF-8 sort as code points do.
  if (a.is_string() && b.is_string()) return a.bytes() < b.bytes();
  if (a.is_sequence() && b.is_sequence() && a.is_tuple() == b.is_tuple()) {
    size_t common = std::min(a.items().size(), b.items().size());
    for (size_t i = 0; i < common; ++i) {
      if (!equal(a.items()[i], b.items()[i])) return less(a.items()[i], b.items()[i]);
    }
    return a.items().size() < b.items().size();
  }
  fail("'<' not supported between instances of '" + a.type_name() + "' and '" + b.type_name() + "'");
}

bool Context::contains(const Value& container, const Value& item) {
  charge(1);
  if (container.is_string()) {
    if (!item.is_string()) fail("'in <string>' requires string as left operand, not " + item.type_name());
    charge(static_cast<int64_t>(container.bytes().size() / 256));
    return item.bytes().empty() || find_bytes(container.bytes(), item.bytes()) != std::string::npos;
  }
  auto* view = object_as<ViewObject>(container, ObjectKind::kView);
  if (container.is_dict() || (view && view->what == ViewObject::What::kKeys)) {
    if (item.is_list() || item.is_dict()) fail("unhashable type: '" + item.type_name() + "'");
    return (view ? view->dict : container.as_dict())->find(item) != nullptr;
  }
  if (!is_iterable(container)) fail("argument of type '" + container.type_name() + "' is not iterable");
  SequenceRef items = iterate(container);
  for (const Value& candidate : items->items) {
    if (candidate.is_same(item) || equal(candidate, item)) return true;
  }
  return false;
}

Value Context::negate(const Value& value) {
  require_defined(value);
  if (value.is_float()) return Value(-value.as_float());
  if (!value.is_integral()) fail("bad operand type for unary -: '" + value.type_name() + "'");
  if (value.as_int() == std::numeric_limits<int64_t>::min()) fail("integer out of range");
  return Value(-value.as_int());
}

Value Context::positive(const Value& value) {
  require_defined(value);
  if (value.is_float()) return value;
  if (!value.is_integral()) fail("bad operand type for unary +: '" + value.type_name() + "'");
  return Value(value.as_int());
}

Value Context::apply(Operator op, const Value& a, const Value& b) {
  charge(1);
  switch (op) {
    case Operator::kEqual: return Value(equal(a, b));
    case Operator::kNotEqual: return Value(!equal(a, b));
    case Operator::kLess: return Value(less(a, b));
    case Operator::kGreater: return Value(less(b, a));
    case Operator::kIn: return Value(contains(b, a));
    case Operator::kNotIn: return Value(!contains(b, a));
    case Operator::kLessEqual:
    case Operator::kGreaterEqual: {
      const Value& low = op == Operator::kLessEqual ? a : b;
      const Value& high = op == Operator::kLessEqual ? b : a;
      bool is_less = less(low, high);  // first: it knows which kinds have an order
      return Value(is_less || equal(low, high));
    }
    default: break;
  }
  require_defined(a);
  if (op == Operator::kModulo && a.is_string()) return format_percent(*this, a, b);
  require_defined(b);
  if (a.is_number() && b.is_number()) return apply_to_numbers(op, a, b);
  if (op == Operator::kAdd) return add(a, b);
  if (op == Operator::kMultiply) {
    if (b.is_integral() && (a.is_string() || a.is_sequence())) return repeat(a, b.as_int());
    if (a.is_integral() && (b.is_string() || b.is_sequence())) return repeat(b, a.as_int());
  }
  fail(std::string("unsupported operand type(s) for ") + operator_text(op) + ": '" + a.type_name() +
       "' and '" + b.type_name() + "'");
}

Value Context::add(const Value& a, const Value& b) {
  if (a.is_string() && b.is_string()) {
    bool is_markup = a.as_string()->is_markup || b.as_string()->is_markup;
    check_size(a.text().size() + b.text().size());
    Text text = is_markup ? escape_html(*this, a) : a.text();
    text.append(is_markup ? escape_html(*this, b) : b.text());
    return make_string(std::move(text), is_markup);
  }
  if (a.is_sequence() && b.is_sequence() && a.is_tuple() == b.is_tuple()) {
    charge(static_cast<int64_t>(a.items().size() + b.items().size()));
    std::vector<Value> items = a.items();
    items.insert(items.end(), b.items().begin(), b.items().end());
    return a.is_tuple() ? make_tuple(std::move(items)) : make_list(std::move(items));
  }
  if (a.is_string()) fail("can only concatenate str (not \"" + b.type_name() + "\") to str");
  if (a.is_sequence()) {
    fail("can only concatenate " + a.type_name() + " (not \"" + b.type_name() + "\") to " + a.type_name());
  }
  fail("unsupported operand type(s) for +: '" + a.type_name() + "' and '" + b.type_name() + "'");
}

Value Context::repeat(const Value& value, int64_t times) {
  size_t size = value.is_string() ? value.text().size() : value.items().size();
  uint64_t count = times > 0 && size > 0 ? static_cast<uint64_t>(times) : 0;
  if (count > limits_.output_bytes)
    count = limits_.output_bytes + 1;  // too many either way; no overflow below
  if (value.is_string()) {
    check_size(size * count);
    Text text;
    for (uint64_t i = 0; i < count; ++i) text.append(value.text());
    return make_string(std::move(text), value.as_string()->is_markup);
  }
  charge(static_cast<int64_t>(size * count));
  std::vector<Value> items;
  for (uint64_t i = 0; i < count; ++i) items.insert(items.end(), value.items().begin(), value.items().end());
  return value.is_tuple() ? make_tuple(std::move(items)) : make_list(std::move(items));
}

Value Context::apply_to_numbers(Operator op, const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral() && op != Operator::kDivide &&
      !(op == Operator::kPower && b.as_int() < 0)) {
    int64_t x = a.as_int(), y = b.as_int(), result = 0;
    bool overflow = false;
    switch (op) {
      case Operator::kAdd: overflow = __builtin_add_overflow(x, y, &result); break;
      case Operator::kSubtract: overflow = __builtin_sub_overflow(x, y, &result); break;
      case Operator::kMultiply: overflow = __builtin_mul_overflow(x, y, &result); break;
      case Operator::kPower: {
        result = 1;
        if (x == 0 || x == 1) result = y == 0 ? 1 : x;
        if (x == -1) result = y % 2 == 0 ? 1 : -1;
        // Any other base leaves 64 bits within 63 steps.
        for (int64_t i = 0; (x > 1 || x < -1) && i < y && !overflow; ++i)
          overflow = __builtin_mul_overflow(result, x, &result);
        break;
      }
      default:
        if (y == 0)
          fail(op == Operator::kModulo ? "integer modulo by zero" : "integer division or modulo by zero");
        if (y == -1) {  // the one pair whose quotient does not fit, and % of it
          if (op == Operator::kFloorDivide) overflow = __builtin_sub_overflow(int64_t{0}, x, &result);
          break;
        }
        result = op == Operator::kModulo ? x % y : x / y;
        if (x % y != 0 && (x % y < 0) != (y < 0)) result += op == Operator::kModulo ? y : -1;
    }
    if (overflow) fail("integer out of range");
    return Value(result);
  }
  double x = a.as_float(), y = b.as_float();
  switch (op) {
    case Operator::kAdd: return Value(x + y);
    case Operator::kSubtract: return Value(x - y);
    case Operator::kMultiply: return Value(x * y);
    case Operator::kPower: {
      if (x == 0 && y < 0) fail("0.0 cannot be raised to a negative power");
      double result = std::pow(x, y);
      if (std::isinf(result) && std::isfinite(x) && std::isfinite(y)) fail("float out of range");
      if (std::isnan(result) && !std::isnan(x) && !std::isnan(y)) fail("the result is not a real number");
      return Value(result);
    }
    default: break;
  }
  if (y == 0) fail(op == Operator::kDivide ? "division by zero" : "float floor division or modulo by zero");
  if (op == Operator::kDivide) return Value(x / y);
  return Value(op == Operator::kModulo ? floor_modulo(x, y) : floor_divide(x, y));
}

}  // namespace restkv::chat
