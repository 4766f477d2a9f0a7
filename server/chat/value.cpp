#include "server/chat/value.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "server/chat/unicode_classes.h"
#include "server/chat/value_objects.h"

namespace restkv::chat {
namespace {

constexpr size_t kIndexedDictSize = 8;  // below it a scan is faster than a hash
constexpr int64_t kKeyBudget = 10'000;

StringRef make_string(Text text, bool is_markup) {
  auto string = std::make_shared<String>();
  string->length = count_code_points(text.bytes());
  string->text = std::move(text);
  string->is_markup = is_markup;
  return string;
}

int deepest(const std::vector<Value>& items) {
  int nesting = 0;
  for (const Value& item : items) nesting = std::max(nesting, item.nesting());
  return nesting;
}

bool equal_dicts(const Dict& a, const Dict& b, int64_t& budget) {
  if (a.size() != b.size()) return false;
  for (const auto& [key, value] : a.entries()) {
    const Value* other = b.find(key);
    if (!other || !equal_values(value, *other, budget)) return false;
  }
  return true;
}

}  // namespace

Value::Value(Text text, bool is_markup) : data_(make_string(std::move(text), is_markup)) {}

Value Value::sequence(std::vector<Value> items, bool is_tuple) {
  auto result = std::make_shared<Sequence>();
  result->nesting = 1 + deepest(items);
  result->items = std::move(items);
  result->is_tuple = is_tuple;
  return SequenceRef(std::move(result));
}

Value Value::dict(Dict dict) { return DictRef(std::make_shared<const Dict>(std::move(dict))); }

IteratorObject::IteratorObject(std::vector<Value> items_in, std::string error_in)
    : Object(ObjectKind::kIterator), items(std::move(items_in)), error(std::move(error_in)) {
  nesting = 1 + deepest(items);
}

int Value::nesting() const {
  if (is_sequence()) return as_sequence()->nesting;
  if (is_dict()) return as_dict()->nesting();
  if (is_object()) return as_object()->nesting;
  return 0;
}

std::string Value::type_name() const {
  if (is_undefined()) return "Undefined";
  if (is_none()) return "NoneType";
  if (is_bool()) return "bool";
  if (is_int()) return "int";
  if (is_float()) return "float";
  if (is_string()) return as_string()->is_markup ? "Markup" : "str";
  if (is_sequence()) return as_sequence()->is_tuple ? "tuple" : "list";
  if (is_dict()) return "dict";
  switch (as_object()->kind) {
    case ObjectKind::kRange: return "range";
    case ObjectKind::kIterator: return "generator";
    case ObjectKind::kView:
      switch (object_as<ViewObject>(*this, ObjectKind::kView)->what) {
        case ViewObject::What::kKeys: return "dict_keys";
        case ViewObject::What::kValues: return "dict_values";
        case ViewObject::What::kItems: return "dict_items";
      }
      return "dict_items";
    case ObjectKind::kNamespace: return "Namespace";
    case ObjectKind::kMacro: return "Macro";
    case ObjectKind::kFunction: return "function";
    case ObjectKind::kMethod: return "builtin_function_or_method";
    case ObjectKind::kLoop: return "LoopContext";
    case ObjectKind::kCycler: return "Cycler";
    case ObjectKind::kJoiner: return "Joiner";
  }
  return "object";
}

bool Value::is_same(const Value& other) const {
  if (data_.index() != other.data_.index()) return false;
  if (is_none()) return true;
  if (is_bool()) return as_bool() == other.as_bool();
  if (is_int()) return as_int() == other.as_int();
  if (is_float()) return as_float() == other.as_float();
  if (is_string()) return as_string() == other.as_string() || bytes() == other.bytes();
  if (is_sequence()) return as_sequence() == other.as_sequence();
  if (is_dict()) return as_dict() == other.as_dict();
  if (is_object()) return as_object() == other.as_object();
  return as_undefined() == other.as_undefined();
}

const Value* Dict::find(std::string_view key) const {
  if (entries_.size() >= kIndexedDictSize) {
    auto found = index_of_string_.find(std::string(key));
    return found == index_of_string_.end() ? nullptr : &entries_[found->second].second;
  }
  for (const auto& [name, value] : entries_) {
    if (name.is_string() && name.bytes() == key) return &value;
  }
  return nullptr;
}

const Value* Dict::find(const Value& key) const {
  if (key.is_string()) return find(std::string_view(key.bytes()));
  for (const auto& [name, value] : entries_) {
    int64_t budget = kKeyBudget;
    if (!name.is_string() && equal_values(name, key, budget)) return &value;
  }
  return nullptr;
}

void Dict::set(const Value& key, Value value) {
  nesting_ = std::max({nesting_, 1 + key.nesting(), 1 + value.nesting()});
  if (const Value* old = find(key)) {
    *const_cast<Value*>(old) = std::move(value);
    return;
  }
  entries_.emplace_back(key, std::move(value));
  if (entries_.size() < kIndexedDictSize) return;
  size_t first = entries_.size() == kIndexedDictSize ? 0 : entries_.size() - 1;
  for (size_t i = first; i < entries_.size(); ++i) {
    if (entries_[i].first.is_string()) index_of_string_.emplace(entries_[i].first.bytes(), i);
  }
}

bool equal_values(const Value& a, const Value& b, int64_t& budget) {
  if (--budget < 0) return false;
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral()) return a.as_int() == b.as_int();
    return a.as_float() == b.as_float();
  }
  if (a.is_string() && b.is_string()) return a.bytes() == b.bytes();
  if (a.is_undefined() || b.is_undefined()) return a.is_undefined() && b.is_undefined();
  if (a.is_sequence() && b.is_sequence()) {
    if (a.is_tuple() != b.is_tuple() || a.items().size() != b.items().size()) return false;
    for (size_t i = 0; i < a.items().size(); ++i) {
      if (!equal_values(a.items()[i], b.items()[i], budget)) return false;
    }
    return true;
  }
  if (a.is_dict() && b.is_dict())
    return a.as_dict() == b.as_dict() || equal_dicts(*a.as_dict(), *b.as_dict(), budget);
  return a.is_same(b);
}

std::string float_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[64];
  auto [end, error] = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific);
  std::string_view text(buffer, end - buffer);
  std::string sign = text.front() == '-' ? "-" : "";
  text.remove_prefix(sign.size());
  size_t e = text.find('e');
  std::string digits(1, text[0]);
  if (e > 2) digits += text.substr(2, e - 2);
  int exponent = 0;
  std::string_view power = text.substr(e + 1);
  if (power.front() == '+') power.remove_prefix(1);
  std::from_chars(power.data(), power.data() + power.size(), exponent);
  if (exponent < -4 || exponent >= 16) {
    std::string result = sign + digits[0];
    if (digits.size() > 1) result += "." + digits.substr(1);
    std::string magnitude = std::to_string(std::abs(exponent));
    return result + "e" + (exponent < 0 ? "-" : "+") + (magnitude.size() < 2 ? "0" : "") + magnitude;
  }
  if (exponent < 0) return sign + "0." + std::string(-exponent - 1, '0') + digits;
  size_t whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole) return sign + digits + std::string(whole - digits.size(), '0') + ".0";
  return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

}  // namespace restkv::chat
