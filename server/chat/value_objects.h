// Values with identity: range, single-use iterators (what Python's generators are to a template), dict views, namespaces,
// macros, functions, bound methods, the loop variable, cycler and joiner.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/chat/value.h"

namespace restkv::chat {

class Context;
struct MacroDefinition;
struct ForStatement;
struct Scope;

struct CallArguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> keyword;
};

struct RangeObject : Object {
  RangeObject(int64_t start, int64_t stop, int64_t step)
      : Object(ObjectKind::kRange), start(start), stop(stop), step(step) {}
  int64_t start, stop, step;
  int64_t size = 0;
};

// Filled at once, read once: what map, select, unique, items... give.
struct IteratorObject : Object {
  explicit IteratorObject(std::vector<Value> items, std::string error = {});
  std::vector<Value> items;
  size_t next = 0;
  std::string error;  // raised when iteration starts, as Python's generators do; empty: none
};

struct ViewObject : Object {
  enum class What : uint8_t { kKeys, kValues, kItems };
  ViewObject(DictRef dict, What what) : Object(ObjectKind::kView), dict(std::move(dict)), what(what) {
    nesting = this->dict->nesting() + 1;
  }
  DictRef dict;
  What what;
};

struct NamespaceObject : Object {
  NamespaceObject() : Object(ObjectKind::kNamespace) {}
  Dict attributes;
};

struct MacroObject : Object {
  MacroObject(const MacroDefinition* definition, std::shared_ptr<Scope> scope)
      : Object(ObjectKind::kMacro), definition(definition), scope(std::move(scope)) {}
  const MacroDefinition* definition;  // in the template
  std::shared_ptr<Scope> scope;       // where it was defined
};

using NativeFunction = Value (*)(Context&, CallArguments&);
struct FunctionObject : Object {
  FunctionObject(const char* name, NativeFunction function)
      : Object(ObjectKind::kFunction), name(name), function(function) {}
  const char* name;
  NativeFunction function;
};

using NativeMethod = Value (*)(Context&, const Value& self, CallArguments&);
struct MethodObject : Object {
  MethodObject(Value self, const char* name, NativeMethod method)
      : Object(ObjectKind::kMethod), self(std::move(self)), name(name), method(method) {
    nesting = this->self.nesting() + 1;
  }
  Value self;
  const char* name;
  NativeMethod method;
};

struct LoopObject : Object {
  LoopObject(SequenceRef sequence, int64_t depth0)
      : Object(ObjectKind::kLoop), sequence(std::move(sequence)), depth0(depth0) {
    nesting = this->sequence->nesting + 1;
  }
  SequenceRef sequence;
  int64_t index0 = 0;
  int64_t depth0;
  std::vector<Value> last_changed;
  bool has_changed = false;
  const ForStatement* recursive = nullptr;  // set in a recursive loop
  std::shared_ptr<Scope> scope;             // around a recursive loop
};

struct CyclerObject : Object {
  explicit CyclerObject(SequenceRef choices) : Object(ObjectKind::kCycler), choices(std::move(choices)) {
    nesting = this->choices->nesting + 1;
  }
  SequenceRef choices;
  size_t position = 0;
};

struct JoinerObject : Object {
  explicit JoinerObject(Value separator) : Object(ObjectKind::kJoiner), separator(std::move(separator)) {}
  Value separator;
  bool used = false;
};

template <class T>
const T* object_as(const Value& value, ObjectKind kind) {
  return value.is_object() && value.as_object()->kind == kind ? static_cast<const T*>(value.as_object().get())
                                                              : nullptr;
}
template <class T>
T* mutable_object_as(const Value& value, ObjectKind kind) {
  return value.is_object() && value.as_object()->kind == kind ? static_cast<T*>(value.as_object().get())
                                                              : nullptr;
}

}  // namespace restkv::chat
