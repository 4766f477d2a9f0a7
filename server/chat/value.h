// Values of the template language: Python's None, bool, int (64 bits), float, str, list, tuple, dict, Jinja's undefined,
// and objects (value_objects.h). Containers are immutable and shared; each knows how deep it nests, so that no walk and
// no destructor recurses further than kMaxNesting.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "server/chat/text.h"

namespace restkv::chat {

inline constexpr int kMaxNesting = 100;

class Dict;
class Value;
struct Object;

struct String {
  Text text;
  size_t length = 0;       // in code points
  bool is_markup = false;  // |safe: adding a plain string to it escapes HTML in that string, as in markupsafe
  bool is_ascii() const { return length == text.size(); }
};

struct Undefined {
  std::string message;  // what an operation on it says
};

struct Sequence {
  std::vector<Value> items;
  bool is_tuple = false;
  int nesting = 1;
};

struct None {};
using StringRef = std::shared_ptr<const String>;
using UndefinedRef = std::shared_ptr<const Undefined>;
using SequenceRef = std::shared_ptr<const Sequence>;
using DictRef = std::shared_ptr<const Dict>;
using ObjectRef = std::shared_ptr<Object>;

class Value {
 public:
  Value() : data_(None{}) {}
  Value(bool value) : data_(value) {}          // NOLINT: implicit on purpose, as in Python
  Value(int64_t value) : data_(value) {}       // NOLINT
  Value(int value) : data_(int64_t{value}) {}  // NOLINT
  Value(double value) : data_(value) {}        // NOLINT
  Value(Text text, bool is_markup = false);    // NOLINT
  Value(std::string_view text) : Value(Text(std::string(text))) {}  // NOLINT
  Value(const char* text) : Value(std::string_view(text)) {}        // NOLINT
  Value(const std::string& text) : Value(Text(text)) {}             // NOLINT
  Value(StringRef value) : data_(std::move(value)) {}               // NOLINT
  Value(SequenceRef value) : data_(std::move(value)) {}             // NOLINT
  Value(DictRef value) : data_(std::move(value)) {}                 // NOLINT
  Value(ObjectRef value) : data_(std::move(value)) {}               // NOLINT
  Value(UndefinedRef value) : data_(std::move(value)) {}            // NOLINT

  static Value undefined(std::string message) {
    return UndefinedRef(std::make_shared<const Undefined>(Undefined{std::move(message)}));
  }
  static Value list(std::vector<Value> items) { return sequence(std::move(items), false); }
  static Value tuple(std::vector<Value> items) { return sequence(std::move(items), true); }
  static Value dict(Dict dict);

  bool is_undefined() const { return holds<UndefinedRef>(); }
  bool is_none() const { return holds<None>(); }
  bool is_bool() const { return holds<bool>(); }
  bool is_int() const { return holds<int64_t>(); }  // not for booleans
  bool is_float() const { return holds<double>(); }
  bool is_number() const { return is_bool() || is_int() || is_float(); }
  bool is_string() const { return holds<StringRef>(); }
  bool is_sequence() const { return holds<SequenceRef>(); }
  bool is_list() const { return is_sequence() && !as_sequence()->is_tuple; }
  bool is_tuple() const { return is_sequence() && as_sequence()->is_tuple; }
  bool is_dict() const { return holds<DictRef>(); }
  bool is_object() const { return holds<ObjectRef>(); }

  bool as_bool() const { return std::get<bool>(data_); }
  int64_t as_int() const { return is_bool() ? int64_t{as_bool()} : std::get<int64_t>(data_); }
  double as_float() const { return is_float() ? std::get<double>(data_) : static_cast<double>(as_int()); }
  const StringRef& as_string() const { return std::get<StringRef>(data_); }
  const Text& text() const { return as_string()->text; }
  const std::string& bytes() const { return text().bytes(); }
  const SequenceRef& as_sequence() const { return std::get<SequenceRef>(data_); }
  const std::vector<Value>& items() const { return as_sequence()->items; }
  const DictRef& as_dict() const { return std::get<DictRef>(data_); }
  const ObjectRef& as_object() const { return std::get<ObjectRef>(data_); }
  const UndefinedRef& as_undefined() const { return std::get<UndefinedRef>(data_); }

  bool is_integral() const { return is_int() || is_bool(); }
  int nesting() const;                     // containers below this one, itself included
  std::string type_name() const;           // Python's: "str", "NoneType", ...
  bool is_same(const Value& other) const;  // Python's `is`

 private:
  static Value sequence(std::vector<Value> items, bool is_tuple);
  template <class T>
  bool holds() const {
    return std::holds_alternative<T>(data_);
  }
  std::variant<None, bool, int64_t, double, StringRef, UndefinedRef, SequenceRef, DictRef, ObjectRef> data_;
};

class Dict {
 public:
  const std::vector<std::pair<Value, Value>>& entries() const { return entries_; }
  size_t size() const { return entries_.size(); }
  const Value* find(std::string_view key) const;
  const Value* find(const Value& key) const;
  // Replaces the value of a key that is there; the key keeps its place.
  void set(const Value& key, Value value);
  int nesting() const { return nesting_; }

 private:
  std::vector<std::pair<Value, Value>> entries_;  // in order of insertion
  std::unordered_map<std::string, size_t> index_of_string_;
  int nesting_ = 1;
};

enum class ObjectKind : uint8_t {
  kRange,
  kIterator,
  kView,
  kNamespace,
  kMacro,
  kFunction,
  kMethod,
  kLoop,
  kCycler,
  kJoiner,
};

// Base of the values with identity (value_objects.h).
struct Object {
  explicit Object(ObjectKind kind) : kind(kind) {}
  virtual ~Object() = default;
  const ObjectKind kind;
  int nesting =
      1;  // of what it holds for good; a namespace's or scope's contents are cut loose at the end instead
};

// Python's ==, without the limits of a render: bounded by kMaxNesting, used for keys. `budget` counts comparisons down;
// at zero the answer is false.
bool equal_values(const Value& a, const Value& b, int64_t& budget);

// Python's repr of a float: the shortest digits that read back, 1e16 and 1e-05 style outside [1e-4, 1e16).
std::string float_repr(double value);

}  // namespace restkv::chat
